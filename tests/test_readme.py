"""What the README says is so."""

import json
import re
import shlex
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lit import benchmark, cli, report, robustness
from mnist_lit.runner import run

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^.*?uv run mnist-lit (.*)$", "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)), re.M)
REFERENCE = ROOT / "lightning_logs" / "reference"


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
    name, *options = shlex.split(command)
    assert name in cli.COMMANDS
    if name in ("fit", "compare"):
        configs = list(takewhile(lambda option: not option.startswith("-"), options))
        flags = re.sub(r"--seeds \d+|--resume|--ckpt_path \w+", "", shlex.join(options[len(configs) :])).split()
        recipes = [option for config in configs for option in ("--config", config)]
        with pytest.raises(SystemExit) as end:
            cli.main(["fit", *recipes, *flags, "--print_config"])
        assert not end.value.code
    elif name in ("validate", "test", "predict"):
        assert options[0] == "--ckpt_path"
        assert options[1:] in (["last"], ["best"]) or Path(options[1]).is_file()
    else:
        assert name == "benchmark" or options == []


def test_every_path_exists() -> None:
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    rows = re.findall(r"^\| (`.*?) \|", README.partition("## What is where")[2], re.M)
    mapped = [path for row in rows for path in re.findall(r"`([^`]+)`", row)]
    assert linked
    assert len(mapped) > 10
    for path in [*linked, *mapped]:
        assert any((ROOT / folder / path).exists() for folder in ("", "mnist_lit")), path
    for module in (ROOT / "mnist_lit").glob("[a-z]*.py"):
        assert module.name in README, module


@pytest.mark.parametrize("name", ["results", "results_published"])
def test_the_results_are_those_of_the_tracked_runs(name: str) -> None:
    results = reference(f"{name}.json")
    assert report.table(results) in README
    assert results[0]["environment"] in README


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


def test_the_speed_is_that_of_the_tracked_benchmarks() -> None:
    for name in ("speed_28px.json", "speed_16px.json"):
        assert benchmark.table(reference(name)).strip() in README
