"""What the README says is so."""

import json
import re
import shlex
import statistics
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lit import cli, commands
from mnist_lit.benchmark import report as benchmark_report
from mnist_lit.evaluation import robustness
from mnist_lit.experiments import report, search
from mnist_lit.run.lightning_cli import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
COMMANDS = re.findall(r"^.*?uv run (?:--extra \w+ )?mnist-lit (.*)$", BLOCKS, re.M)
REFERENCE = ROOT / "lightning_logs" / "reference"
TAUGHT = "distillation_weight_and_temperature"


def is_first(result: dict[str, Any]) -> bool:
    """Whether the run is the one of its network whose folder is tracked."""
    return bool(result["seed"] == 42)


def reference(name: str) -> Any:
    return json.loads((REFERENCE / name).read_text())


def test_there_are_commands() -> None:
    assert {command.split()[0] for command in COMMANDS} >= {"fit", "validate", "test", "predict", "compare"}


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_is_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    name, *given = shlex.split(command)
    options = commands.parse(name, given)
    if isinstance(options, list):  # LightningCLI reads them
        line, read = options, [path for option, path in pairwise(given) if option == "--ckpt_path"]
    else:
        changes = [option for change in getattr(options, "change", []) for option in change.split()]
        changes += [f"{search.parse(vary)[0]}=1" for vary in getattr(options, "vary", [])]
        recipes = [f"--config={recipe}" for recipe in options.names]
        line = ["fit", *recipes, *options.flags, *(f"--{change}" for change in changes)]
        read = [path for key in ("ckpt_path", "checkpoint") if (path := getattr(options, key, None))]
    with pytest.raises(SystemExit) as end:
        cli.main([*line, "--print_config"])
    assert not end.value.code
    written = {other.split()[-1] for other in COMMANDS if other.startswith("publish")}
    assert all(path in ("last", "best", *written) or Path(path).is_file() for path in read)


def test_every_path_exists() -> None:
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    rows = re.findall(r"^\| (`.*?) \|", README.partition("## What is where")[2], re.M)
    mapped = [path for row in rows for path in re.findall(r"`([^`]+)`", row)]
    assert linked
    assert len(mapped) > 10
    for path in [*linked, *mapped]:
        assert any((ROOT / folder / path).exists() for folder in ("", "mnist_lit")), path
    for module in (ROOT / "mnist_lit").rglob("[a-z]*.py"):
        assert module.name in README, module


@pytest.mark.parametrize("name", ["results", "results_ablation"])
def test_the_results_are_those_of_the_tracked_runs(name: str) -> None:
    results = reference(f"{name}.json")
    assert report.table(results) in README
    assert results[-1]["environment"] in README


def effects() -> list[list[str]]:
    """What each part of the factorial experiment in search.jsonl gives: mean ± standard error over pairs of runs."""
    trials = [json.loads(line) for line in (REFERENCE / "search.jsonl").read_text().splitlines()]
    runs = {
        (trial["model"], trial["image_size"], trial["batch_size"], trial[TAUGHT] is not None, seed): figures
        for trial in trials
        if trial.get("part_of") == "factorial"
        for seed, figures in enumerate(
            zip(trial["val_accuracies_percent"], trial["val_cross_entropies"], strict=True), start=1
        )
    }
    rows = [["part", "accuracy, points", "cross-entropy, thousandths", "DS_CNN_V1", "DS_CNN_V2", "DS_CNN_V3"]]
    for name, place, value, other in (
        ("18 px, not 16", 1, 16, 18), ("batches of 64, not 128", 2, 128, 64), ("a teacher", 3, False, True)
    ):  # fmt: skip
        pairs = {run: (*run[:place], other, *run[place + 1 :]) for run in runs if run[place] == value}
        gains = {run: (runs[pair][0] - runs[run][0], 1000 * (runs[pair][1] - runs[run][1]))
                 for run, pair in pairs.items() if pair in runs}  # fmt: skip
        row = [name]
        for form, column, model in (
            (".2f", 0, ""), (".1f", 1, ""), (".2f", 0, "V1"), (".2f", 0, "V2"), (".2f", 0, "V3")
        ):  # fmt: skip
            some = [gain[column] for run, gain in gains.items() if str(run[0]).endswith(model)]
            row.append(f"{statistics.mean(some):+{form}} ± {statistics.stdev(some) / len(some) ** 0.5:{form}}")
        rows.append(row)
    return rows


def test_the_factorial_is_that_of_the_tracked_trials() -> None:
    assert report.markdown(effects()) in README


def test_what_limits_it_is_that_of_the_tracked_trials() -> None:
    trials = [json.loads(line) for line in (REFERENCE / "search.jsonl").read_text().splitlines()]
    rows = [["changed in the recipe of DS_CNN_V2", "training %", "validation %", "cross-entropy, thousandths", "runs"]]
    rows += [
        [
            trial["changed"],
            f"{trial['train_accuracy_percent']:.2f}",
            f"{trial['val_accuracy_percent']:.2f}",
            f"{1000 * trial['val_cross_entropy']:.1f}",
            str(trial["seeds"]),
        ]
        for trial in trials
        if "changed" in trial
    ]
    assert len(rows) > 30
    assert report.markdown(rows) in README
    assert f"{len(trials)} trials of {sum(trial.get('seeds', 1) for trial in trials)} runs" in README


def test_what_was_promised_stands_beside_what_was_reached() -> None:
    rows = [["model", "parameters", "promised %", "trained as published %", "trained as here %"]]
    reached = {name: reference(f"{name}.json") for name in ("results_published", "results")}
    for model, promised in {"DS_CNN_V1": "97.49", "DS_CNN_V2": "99.27", "DS_CNN_V3": "99.25"}.items():
        row = [model, f"{next(run['parameters'] for run in reached['results'] if run['model'] == model):,}", promised]
        for runs in reached.values():
            accuracies = [100 * run["test_accuracy"] for run in runs if run["model"] == model]
            assert len(accuracies) == 5
            row.append(f"{statistics.mean(accuracies):.2f} ± {statistics.stdev(accuracies):.2f}")
        rows.append(row)
    assert report.markdown(rows) in README


def test_the_robustness_is_that_of_the_tracked_measurement() -> None:
    measured = reference("robustness.json")
    assert robustness.table(measured) in README
    plain = {one["model"]: one["accuracies"]["none"][""] for one in measured}
    first = [result for result in reference("results.json") if is_first(result)]
    assert plain == pytest.approx({result["model"]: result["test_accuracy"] for result in first})


@pytest.mark.slow
@pytest.mark.parametrize("network", ["ds_cnn_v1", "ds_cnn_v2", "ds_cnn_v3"])
def test_the_tracked_checkpoints_are_as_accurate_as_told(
    network: str, official_mnist: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    folder = REFERENCE / network
    before = {path: path.stat().st_mtime_ns for path in REFERENCE.rglob("*")}
    test = run(["test", "--ckpt_path", str(folder / "checkpoints/last.ckpt"), "--data.data_dir", official_mnist])
    (told,) = [result for result in reference("results.json") if result["recipe"] == network and is_first(result)]
    reached = test.trainer.callback_metrics["test/accuracy"].item()
    assert reached == pytest.approx(told["test_accuracy"], abs=1.5e-4)  # other hardware may read a digit otherwise
    assert {path: path.stat().st_mtime_ns for path in REFERENCE.rglob("*")} == before
    curve = EventAccumulator(str(folder)).Reload().Scalars("val/accuracy")
    assert len(curve) == told["epochs"]
    assert curve[-1].value == pytest.approx(told["val_accuracy"])


def test_the_speed_is_that_of_the_tracked_benchmark() -> None:
    assert benchmark_report.table(reference("benchmark/benchmark.json")).strip() in README
