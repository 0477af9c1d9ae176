"""Fixtures: a tiny MNIST, the command line in this process, and the end of all started processes."""

import gzip
import hashlib
import os
import shlex
from collections.abc import Callable, Iterator
from functools import partial
from itertools import takewhile
from pathlib import Path

import lightning.pytorch  # noqa: F401  before rich: typing would cache its Union[float, int], and 1 batch would be all
import numpy as np
import pytest
import torch
from helpers import processes
from helpers.commands import SMALL, TEST, TRAIN, Main

from mnist_lit import cli
from mnist_lit.data import official

torch.set_num_threads(1)  # more are slower on data so small

OFFICIAL = official.OFFICIAL

START = Path.cwd()
"""The folder in which the tests were started, where MNIST_DIR may be relative to."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests more time before they fail."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(autouse=True)
def kill_started_processes() -> Iterator[None]:
    """Kill the processes that a test leaves running, also when it fails."""
    earlier = set(processes.STARTED)
    yield
    processes.kill(*(processes.STARTED.keys() - earlier))


@pytest.fixture(scope="session")
def tiny_mnist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of MNIST in the official format, but tiny, whose sizes and checksums are the official ones meanwhile."""
    folder = tmp_path_factory.mktemp("mnist") / "MNIST" / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    files = {}
    for prefix, count in (("train", TRAIN), ("t10k", TEST)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        generator.shuffle(labels)
        images = generator.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):  # the place of a square shows the digit
            row, column = 4 + 10 * (label // 5), 2 + 5 * (label % 5)
            image[row : row + 8, column : column + 4] = 255
        for kind, array in (("images", images), ("labels", labels)):
            name = f"{prefix}-{kind}-idx{array.ndim}-ubyte"
            content = np.array([0x800 + array.ndim, *array.shape], dtype=">i4").tobytes() + array.tobytes()
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            files[name] = official.OfficialFile(len(content), hashlib.md5(content).hexdigest())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "OFFICIAL", files)
        yield folder.parent.parent


@pytest.fixture
def main(tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Main:
    """Runs a command line in an empty working folder, where `data` is the tiny MNIST, with options that suit it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UV", raising=False)
    (tmp_path / "data").symlink_to(tiny_mnist)

    def run(line: str) -> None:
        command, *args = shlex.split(line)
        if command in ("fit", "compare", "search"):
            recipes = list(takewhile(lambda arg: not arg.startswith("-"), args))  # these come first
            args = [*recipes, *SMALL, *args[len(recipes) :]]
        cli.main([command, *args])

    return run


@pytest.fixture
def fit_args(tiny_mnist: Path) -> list[str]:
    """A fit of 4 epochs of 25 steps, for a process of its own."""
    return ["fit", *SMALL, "--data.batch_size=10", "--trainer.max_epochs=4", f"--data.data_dir={tiny_mnist}"]


@pytest.fixture
def report(record_property: Callable[[str, str], None]) -> Callable[[str], None]:
    """Adds a line to the summary of all tests."""
    return partial(record_property, "measured")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the lines of `report`, which come from other processes if tests run in parallel."""
    properties = [item for outcome in ("passed", "failed") for item in terminalreporter.stats.get(outcome, [])]
    lines = [text for item in properties for name, text in item.user_properties if name == "measured"]
    if lines:
        terminalreporter.section("measured")
    for line in lines:
        terminalreporter.write_line(line)


@pytest.fixture
def official_mnist(monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of the official files, which MNIST_DIR names."""
    if "MNIST_DIR" not in os.environ:
        pytest.skip("MNIST_DIR does not name the folder of the official MNIST files")
    monkeypatch.setattr(official, "OFFICIAL", OFFICIAL)
    return str(START / os.environ["MNIST_DIR"])
