"""Summarize and print a benchmark's results."""

import statistics
from typing import Any

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
        cells = [["recipe", "epochs", "start to first step, s", "first step to end, s", "to 97.49 %, s", "memory, GB"]]
        for row in rows:
            figures = [row[key] for key in ("first_step_s", "fit_s", "promised_s", "peak_memory_gb")]
            cells.append([row["model"], str(row["epochs"]), *("-" if x is None else f"{x:.2f}" for x in figures)])
        parts.append(markdown_table(cells))
    return "\n".join([*parts, result["environment"] + "\n"])


def _format(values: dict[str, float], form: str = ".2f") -> str:
    return f"{values['median']:{form}} ({values['min']:{form}} to {values['max']:{form}})"
