"""Report of a comparison: a Markdown table, the results as JSON, and a plot of the accuracy curves."""

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lit import files
from mnist_lit.callbacks.drawings import COLORS
from mnist_lit.describe import markdown_table
from mnist_lit.experiments.recipes import run_folder
from mnist_lit.experiments.runs import Result


def write_report(folder: Path, results: list[Result]) -> None:
    """Write results.json, results.md and accuracy.png into the folder, and print the table."""
    write_results(folder, results, f"{table(results)}\n{results[0]['test_images']:,} test images.")
    _plot(folder, results)
    print(f"{folder}: results.md, results.json, accuracy.png")


def write_results(folder: Path, results: list[Result], text: str) -> None:
    """Write results.json, and results.md with the text and where it was measured; print the latter."""
    environments = "; ".join(dict.fromkeys(result["environment"] for result in results))
    text = f"{text} {environments}\n"
    files.write_atomically(folder / "results.json", (json.dumps(results, indent=2) + "\n").encode())
    files.write_atomically(folder / "results.md", text.encode())
    print(f"\n{text}")


def wilson(accuracy: float, images: int) -> tuple[float, float]:
    """Lower and upper end of the 95 % confidence interval of an accuracy (0 to 1) on a number of images.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    z = statistics.NormalDist().inv_cdf(0.975)
    center = (accuracy + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * math.sqrt(accuracy * (1 - accuracy) / images + (z / (2 * images)) ** 2)
    return center - half, center + half


def table(results: list[Result]) -> str:
    """Markdown table with one row per recipe: means over its seeds, and the interval of a single mean accuracy."""
    groups = by_recipe(results)
    seeds = max(map(len, groups))
    columns = ["model", "parameters", "multiply-adds", "epochs", "validation %", "test % (95 % interval)"]
    columns += [f"test, mean ± sd of {seeds} seeds"] if seeds > 1 else []
    rows = [[*columns, "seconds"]]
    for runs in groups:
        accuracies = [100 * run["test_accuracy"] for run in runs]
        mean = statistics.mean(accuracies)
        low, high = wilson(mean / 100, runs[0]["test_images"])
        row = [
            label(runs[0]),
            f"{runs[0]['parameters']:,}",
            f"{runs[0]['multiply_adds']:,}",
            str(runs[0]["epochs"]),
            f"{100 * statistics.mean(run['val_accuracy'] for run in runs):.2f}",
            f"{mean:.2f} ({100 * low:.2f} to {100 * high:.2f})",
        ]
        if seeds > 1:
            deviation = f" ± {statistics.stdev(accuracies):.2f}" if len(runs) > 1 else ""
            count = f" ({len(runs)})" if len(runs) < seeds else ""  # other seeds have failed
            row.append(f"{mean:.2f}{deviation}{count}")
        rows.append([*row, f"{statistics.mean(run['seconds'] for run in runs):.0f}"])
    return markdown_table(rows)


def by_recipe(results: list[Result]) -> list[list[Result]]:
    """The runs of each recipe, in their order."""
    groups: defaultdict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[result["recipe"]].append(result)
    return list(groups.values())


def label(result: Result) -> str:
    """Name of a row: the model, the name of its recipe if that differs, and the changed options."""
    name, *changes = result["recipe"].split(", ")
    model = result["model"] if name == result["model"].lower() else f"{result['model']} ({name})"
    return ", ".join([model, *changes])


def _plot(folder: Path, results: list[Result]) -> None:
    """Plot the curves from the TensorBoard logs into accuracy.png: a panel per recipe, a line per run and split."""
    recipes = by_recipe(results)
    columns = min(len(recipes), 3)
    rows = math.ceil(len(recipes) / columns)
    figure = Figure(figsize=(4 * columns + 0.5, 3.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for panel in panels[len(recipes) :]:
        panel.axis("off")
    lowest = min(_plot_recipe(panel, folder, runs) for panel, runs in zip(panels, recipes, strict=False))
    panels[0].set(ylabel="accuracy %", ylim=(math.floor(lowest) - 0.5, 100.2))
    files.save_figure(figure, folder / "accuracy.png", dpi=120)


def _plot_recipe(panel: Axes, folder: Path, runs: list[Result]) -> float:
    """Plot the runs of a recipe, and return the lowest accuracy (%) that the axis should include."""
    lowest = 100.0
    labels = {"train": "train", "val": "validation", "test": "test (not used to select)"}
    for run in runs:
        events = EventAccumulator(str(run_folder(folder, run["recipe"], run["seed"]))).Reload()
        epoch_of = {event.step: epoch for epoch, event in enumerate(events.Scalars("accuracy/train"), start=1)}
        for split, color in COLORS.items():
            # keyed by epoch, as the final test repeats the step of the last epoch
            curve = {epoch_of[event.step]: 100 * event.value for event in events.Scalars(f"accuracy/{split}")}
            if split == "test" and len(curve) < 2:  # the final test alone, which is plotted as a star
                continue
            panel.plot(list(curve), list(curve.values()), color=color, label=labels.pop(split, None))
            # the first epoch may be so low that the others would overlap
            lowest = min([lowest, *(accuracy for epoch, accuracy in curve.items() if epoch > 1 or len(curve) < 3)])
    finals = [100 * run["test_accuracy"] for run in runs]
    final = f"test, final: {statistics.mean(finals):.2f} %"
    panel.plot([runs[0]["epochs"]] * len(finals), finals, "*", ms=11, color=COLORS["test"], label=final)
    panel.set(xlabel="epoch")
    panel.set_title(f"{label(runs[0])}: {runs[0]['parameters']:,} parameters", fontsize="medium", wrap=True)
    panel.locator_params(axis="x", integer=True)
    panel.grid(alpha=0.3)
    panel.legend(loc="lower right", fontsize="small")
    return lowest
