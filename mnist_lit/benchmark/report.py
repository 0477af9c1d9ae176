"""Summarize and print a benchmark's results."""

import statistics
from collections import defaultdict
from typing import Any

from mnist_lit.benchmark.timing import TARGETS
from mnist_lit.describe import markdown_table


def spread(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum of the rounds."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(result: dict[str, Any]) -> str:
    """Markdown tables of the measured parts: medians of the rounds, with minimum and maximum in parentheses."""
    parts = []
    if rows := result.get("overhead"):
        cells = [["batch size", "`mnist-lit fit`, images/s", "plain loop, images/s", "ratio", "validation, s"]]
        for row in rows:
            speeds = [_format(row[key], ",.0f") for key in ("fit_images_per_s", "plain_images_per_s")]
            cells.append([f"{row['batch_size']:,}", *speeds, _format(row["ratio"]), _format(row["validation_s"])])
        parts.append(f"{rows[0]['model']}, input {rows[0]['image_size']} px:\n\n{markdown_table(cells)}")
    if ways := result.get("others"):
        cells = [[f"{ways['model']}, batch size {ways['batch_size']}", "images/s"]]
        cells += [[name, _format(speeds, ",.0f")] for name, speeds in ways["images_per_s"].items()]
        cells += [[f"{name}, ratio", _format(ratios, ".1f")] for name, ratios in ways["ratios"].items()]
        parts.append(markdown_table(cells))
    if rows := result.get("recipes"):
        targets = [f"to {target} %, s" for target in TARGETS]
        cells = [["recipe", "epochs", "start to first step, s", *targets, "to the end, s", "memory, GB"]]
        for row in rows:
            reached = [row["reached_s"].get(str(target)) for target in TARGETS]
            seconds = [_training_and_command(training, row["first_step_s"]) for training in (*reached, row["fit_s"])]
            memory = row["peak_memory_gb"]
            cells.append([row["recipe"], str(row["epochs"]), f"{row['first_step_s']:.1f}", *seconds])
            cells[-1].append("-" if memory is None else f"{memory:.2f}")
        parts.append(markdown_table(cells))
    if part := result.get("graphs"):
        ways = ("fit", "with graphs", "plain loop")
        cells = [["batch size", *(f"{way}, images/s" for way in ways)]]
        cells += [[f"{row['batch_size']:,}", *(_format(row[way], ",.0f") for way in ways)] for row in part["speeds"]]
        equal = ", ".join(f"{name}: {'yes' if is_equal else 'no'}" for name, is_equal in part["equal"].items())
        line = f"Weights of a fit with graphs, bitwise equal to those of the fit {equal}."
        parts.append(f"{markdown_table(cells)}\n{line}\n")
    environments: defaultdict[str, list[str]] = defaultdict(list)
    for name, environment in result["environments"].items():
        environments[environment].append(name)
    for environment, names in environments.items():
        parts.append(f"{environment}\n" if len(environments) == 1 else f"{', '.join(names)}: {environment}\n")
    return "\n".join(parts)


def _format(values: dict[str, float], form: str = ".2f") -> str:
    return f"{values['median']:{form}} ({values['min']:{form}} to {values['max']:{form}})"


def _training_and_command(training_s: float | None, first_step_s: float) -> str:
    """Seconds from the first step and, in parentheses, from the start of the command; a dash if never reached."""
    return "-" if training_s is None else f"{training_s:.1f} ({first_step_s + training_s:.1f})"
