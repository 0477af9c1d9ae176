"""What the README says is so."""

import json
import re
import shlex
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from mnist_lit import benchmark, cli, report

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^.*?uv run mnist-lit (.*)$", "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)), re.M)
REFERENCE = ROOT / "lightning_logs" / "reference"


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
    elif name != "benchmark":
        assert re.fullmatch(r"--ckpt_path (last|best)", shlex.join(options))


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


@pytest.mark.parametrize("name", ["results", "results_28px"])
def test_the_results_are_those_of_the_tracked_runs(name: str) -> None:
    results = reference(f"{name}.json")
    assert report.table(results) in README
    assert results[0]["environment"] in README


def test_the_speed_is_that_of_the_tracked_benchmarks() -> None:
    for name in ("speed_28px.json", "speed_16px.json"):
        assert benchmark.table(reference(name)).strip() in README
