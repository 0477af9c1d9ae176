"""Report of a comparison by cross-validation: accuracies on held-out training images, and paired differences."""

import math
import statistics
from pathlib import Path

import torch
from torch import Tensor

from mnist_lit.describe import markdown_table
from mnist_lit.experiments.report import by_recipe, label, write_results
from mnist_lit.experiments.runs import Result

EXPLANATION = (
    "Difference: from the first row, image by image; an image counts by the share of seeds that classify it correctly. "
    "95 % interval: mean ± 1.96 standard errors over the images."
)


def write_folds_report(folder: Path, results: list[Result], runs_per_recipe: int) -> None:
    """Write results.json and results.md into the folder, and print the table."""
    write_results(folder, results, f"{table(results, runs_per_recipe)}\n{EXPLANATION}")
    print(f"{folder}: results.md, results.json")


def table(results: list[Result], runs_per_recipe: int) -> str:
    """Markdown table with one row per recipe: means over all held-out images and over its seeds.

    A recipe with failed runs is left out, because it is not measured on all images.
    """
    complete = [runs for runs in by_recipe(results) if len(runs) == runs_per_recipe]
    if not complete:
        return "No recipe has finished all of its runs.\n"
    first = accuracy_by_image(complete[0])
    seeds = len({run["seed"] for run in complete[0]})
    columns = ["model", "parameters", "accuracy %", "cross-entropy, thousandths", "difference, points (95 % interval)"]
    rows = [[*columns, "seconds per run"]]
    for runs in complete:
        by_image = accuracy_by_image(runs)
        mean, half = paired_difference(by_image, first)
        loss = sum(run["val_cross_entropy"] * run["val_images"] for run in runs) / (seeds * len(by_image))
        difference = f"{100 * mean:+.3f} ({100 * (mean - half):+.3f} to {100 * (mean + half):+.3f})"
        rows.append(
            [
                label(runs[0]),
                f"{runs[0]['parameters']:,}",
                f"{100 * by_image.mean().item():.3f}",
                f"{1000 * loss:.2f}",
                difference if runs is not complete[0] else "",
                f"{statistics.mean(run['seconds'] for run in runs):.0f}",
            ]
        )
    return f"{markdown_table(rows)}\n{len(first):,} held-out images, {seeds} seed{'s' * (seeds > 1)}.\n"


def accuracy_by_image(runs: list[Result]) -> Tensor:
    """Share of the seeds (N,), 0 to 1, whose network classifies each held-out image correctly, ordered by fold."""
    by_seed = []
    for seed in dict.fromkeys(run["seed"] for run in runs):
        right = []
        for run in sorted((run for run in runs if run["seed"] == seed), key=lambda run: run["fold"]):
            right.append(torch.ones(run["val_images"], dtype=torch.double))
            right[-1][run["wrong"]] = 0
        by_seed.append(torch.cat(right))
    return torch.stack(by_seed).mean(dim=0)


def paired_difference(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Mean of the differences between two accuracies per image (N,), and half the width of its 95 % interval."""
    difference = ours - theirs
    standard_error = difference.std().item() / math.sqrt(len(difference))
    return difference.mean().item(), statistics.NormalDist().inv_cdf(0.975) * standard_error
