"""Tables of the README files, generated from the tracked results.

A block between `<!-- begin NAME -->` and `<!-- end NAME -->` is the output of the function of that name here.
`PYTHONPATH=tests uv run python -m helpers.readme_tables` writes all blocks.
"""

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mnist_lit.benchmark import report as benchmark_report
from mnist_lit.describe import markdown_table
from mnist_lit.evaluation import robustness as robustness_report
from mnist_lit.experiments import report

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "lightning_logs" / "reference"
PROMISED = {"DS_CNN_V1": "97.49", "DS_CNN_V2": "99.27", "DS_CNN_V3": "99.25"}
"""Test accuracy in percent that the specification states for each network."""
TEACHER = "distillation_weight_and_temperature"
CHANGES_SHOWN = (
    "nothing",
    "60 epochs",
    "batches of 32",
    "SOAP, a second-order optimiser",
    "Muon, which orthogonalises its steps",
    "sharpness-aware minimisation, radius 0.05",
    "labels smoothed by 0.05",
    "turned, scaled, shifted at random",
    "strokes thicker or thinner at random",
    "elastic distortions of 0.25 px",
    "averaged weights (decay 0.999)",
    "ink half the way to a common mass",
)
"""Changes of the recipe that are shown of all in search.jsonl."""


def read(name: str) -> Any:
    """The content of a tracked JSON or JSON Lines file."""
    text = (REFERENCE / name).read_text()
    return [json.loads(line) for line in text.splitlines()] if name.endswith("jsonl") else json.loads(text)


def mean_and_deviation(runs: list[dict[str, Any]], model: str) -> tuple[float, float]:
    """Mean and standard deviation of the test accuracies of a network's five seeds, in percent."""
    accuracies = [100 * run["test_accuracy"] for run in runs if run["model"] == model]
    if len(accuracies) != 5:
        raise ValueError(f"{model} has {len(accuracies)} runs, not 5")
    return statistics.mean(accuracies), statistics.stdev(accuracies)


def mean_accuracy(runs: list[dict[str, Any]], model: str) -> str:
    mean, deviation = mean_and_deviation(runs, model)
    return f"{mean:.2f} ± {deviation:.2f}"


def parameters(model: str) -> str:
    return f"{next(run['parameters'] for run in read('results.json') if run['model'] == model):,}"


def results() -> str:
    """The networks beside their specification, for README.md."""
    rows = [["network", "parameters", "specified test %", "reached test % (mean ± sd of 5 seeds)"]]
    rows += [
        [model, parameters(model), promised, mean_accuracy(read("results.json"), model)]
        for model, promised in PROMISED.items()
    ]
    return markdown_table(rows)


def published() -> str:
    """The networks trained by the published recipe and by this project's."""
    rows = [["network", "parameters", "specified test %", "published recipe, test %", "recipes here, test %"]]
    for model, promised in PROMISED.items():
        reached = [mean_accuracy(read(name), model) for name in ("results_published.json", "results.json")]
        rows.append([model, parameters(model), promised, *reached])
    return markdown_table(rows)


def comparison() -> str:
    """The table that `mnist-lit compare --seeds 5` prints."""
    return _compared("results.json")


def ablation() -> str:
    """The recipe of DS_CNN_V2 beside the same with one value changed."""
    return _compared("results_ablation.json")


def _compared(name: str) -> str:
    runs = read(name)
    return f"{report.table(runs)}\n{runs[-1]['test_images']:,} test images. {runs[-1]['environment']}\n"


def factorial() -> str:
    """Effect of each factor: mean ± standard error over the pairs of runs that differ in this factor alone."""
    runs = {
        (trial["model"], trial["image_size"], trial["batch_size"], trial[TEACHER] is not None, seed): figures
        for trial in read("search.jsonl")
        if trial.get("part_of") == "factorial"
        for seed, figures in enumerate(zip(trial["val_accuracies_percent"], trial["val_cross_entropies"], strict=True))
    }
    rows = [["change", "accuracy, points", "cross-entropy, thousandths", *PROMISED]]
    for name, place, before, after in (
        ("18 px, not 16", 1, 16, 18),
        ("batches of 64, not 128", 2, 128, 64),
        ("a teacher", 3, False, True),
    ):
        pairs = {run: (*run[:place], after, *run[place + 1 :]) for run in runs if run[place] == before}
        gains = {
            run: (runs[pair][0] - runs[run][0], 1000 * (runs[pair][1] - runs[run][1]))
            for run, pair in pairs.items()
            if pair in runs
        }
        row = [name]
        for column, form, models in ((0, ".2f", {*PROMISED}), (1, ".1f", {*PROMISED})):
            row.append(_effect([gain[column] for run, gain in gains.items() if run[0] in models], form))
        row += [_effect([gain[0] for run, gain in gains.items() if run[0] == model], ".2f") for model in PROMISED]
        rows.append(row)
    return markdown_table(rows)


def _effect(gains: list[float], form: str) -> str:
    return f"{statistics.mean(gains):+{form}} ± {statistics.stdev(gains) / len(gains) ** 0.5:{form}}"


def changes() -> str:
    """Some of the changes that were tried on the recipe of DS_CNN_V2."""
    tried = [trial for trial in read("search.jsonl") if "changed" in trial]
    shown = [trial for trial in tried if trial["changed"] in CHANGES_SHOWN]
    rows = [["change in the recipe of DS_CNN_V2", "training %", "validation %", "cross-entropy, thousandths", "runs"]]
    for trial in shown:
        accuracies = [f"{trial[f'{split}_accuracy_percent']:.2f}" for split in ("train", "val")]
        rows.append([trial["changed"], *accuracies, f"{1000 * trial['val_cross_entropy']:.1f}", str(trial["seeds"])])
    best = max(trial["val_accuracy_percent"] for trial in tried)
    return (
        f"{markdown_table(rows)}\n{len(shown) - 1} of the {len(tried) - 1} changes in search.jsonl; the highest "
        f"validation accuracy of all of them is {best:.2f} %.\n"
    )


def robustness() -> str:
    """The table that `mnist-lit robustness` prints."""
    return robustness_report.table(read("robustness.json")).strip() + "\n"


def benchmark() -> str:
    """The tables that `mnist-lit benchmark` prints."""
    return benchmark_report.table(read("benchmark/benchmark.json")).strip() + "\n"


BLOCKS: dict[str, tuple[str, Callable[[], str]]] = {
    "results": ("README.md", results),
    "published": ("lightning_logs/reference/README.md", published),
    "comparison": ("lightning_logs/reference/README.md", comparison),
    "robustness": ("lightning_logs/reference/README.md", robustness),
    "ablation": ("configs/README.md", ablation),
    "factorial": ("configs/README.md", factorial),
    "changes": ("configs/README.md", changes),
    "benchmark": ("mnist_lit/benchmark/README.md", benchmark),
}
"""By name of a block, the file that holds it and the function that generates it."""


def block(name: str) -> re.Pattern[str]:
    """Matches the content of a block."""
    return re.compile(f"(?<=<!-- begin {name} -->\n).*?(?=<!-- end {name} -->\n)", re.DOTALL)


def main() -> None:
    for name, (file, generate) in BLOCKS.items():
        text = (ROOT / file).read_text()
        match = block(name).search(text)
        if match is None:
            raise SystemExit(f"{file} has no block {name}")
        (ROOT / file).write_text(f"{text[: match.start()]}\n{generate()}\n{text[match.end() :]}")


if __name__ == "__main__":
    main()
