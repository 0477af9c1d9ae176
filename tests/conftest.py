import gzip
import hashlib
import os
import shlex
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import SMALL, TEST, TRAIN

from mnist_lit import cli
from mnist_lit.data import official

torch.set_num_threads(1)  # more are slower on data so small

OFFICIAL = official.OFFICIAL


@pytest.fixture(scope="session")
def tiny_mnist(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of MNIST in the official format, but tiny, while the official sizes and checksums are those of it."""
    folder = tmp_path_factory.mktemp("mnist") / "MNIST" / "raw"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    files = {}
    for prefix, count in (("train", TRAIN), ("t10k", TEST)):
        labels = (np.arange(count) % 10).astype(np.uint8)
        generator.shuffle(labels)
        images = generator.integers(0, 60, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):  # a square whose place tells the digit
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
def main(tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """The real `main`, in an empty folder where `data` is the tiny MNIST, with defaults that suit it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UV", raising=False)
    (tmp_path / "data").symlink_to(tiny_mnist)

    def run(line: str) -> None:
        command, *given = shlex.split(line)
        if command in ("fit", "compare", "search"):
            recipes = list(takewhile(lambda arg: not arg.startswith("-"), given))  # these come first
            given = [*recipes, *SMALL, *given[len(recipes) :]]
        cli.main([command, *given])

    return run


@pytest.fixture
def official_mnist(monkeypatch: pytest.MonkeyPatch) -> str:
    """The folder of the official files, which MNIST_DIR names."""
    if "MNIST_DIR" not in os.environ:
        pytest.skip("MNIST_DIR does not name the folder of the official MNIST files")
    monkeypatch.setattr(official, "OFFICIAL", OFFICIAL)
    return str(Path(os.environ["MNIST_DIR"]).resolve())
