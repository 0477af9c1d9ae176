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
from mnist_lit.experiments import folds, report

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "lightning_logs" / "reference"
PROMISED = {"DS_CNN_V1": "97.49", "DS_CNN_V2": "99.27", "DS_CNN_V3": "99.25"}
"""Test accuracy in percent that the specification states for each network."""


def read(name: str) -> Any:
    """The content of a tracked JSON file."""
    return json.loads((REFERENCE / name).read_text())


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


def _compared(name: str) -> str:
    runs = read(name)
    return f"{report.table(runs)}\n{runs[-1]['test_images']:,} test images. {runs[-1]['environment']}\n"


def by_folds() -> str:
    """The recipe of DS_CNN_V2 beside the same with one value changed, by cross-validation."""
    runs = read("results_folds.json")
    return f"{folds.table(runs, runs_per_recipe=3)}\n{runs[-1]['environment']}\n"


def fast() -> str:
    """The table that `mnist-lit compare configs/fast.yaml --seeds 10` prints."""
    return _compared("results_fast.json")


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
    "folds": ("configs/README.md", by_folds),
    "fast": ("configs/README.md", fast),
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
