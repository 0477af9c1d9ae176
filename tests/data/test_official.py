"""Files of MNIST under other names, and other datasets under MNIST's names."""

import gzip
import hashlib
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torchvision

from mnist_lit import UserError
from mnist_lit.data import official


def unpack(source: Path, target: Path) -> list[Path]:
    """Unpack the files of the tiny MNIST into an existing folder."""
    for path in (source / "MNIST" / "raw").iterdir():
        (target / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    return sorted(target.iterdir())


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_names_with_a_dot_are_found(tiny_mnist: Path, tmp_path: Path, suffix: str) -> None:
    for path in unpack(tiny_mnist, tmp_path):
        content = path.read_bytes()
        path.unlink()
        dotted = tmp_path / f"{path.name.replace('-idx', '.idx')}{suffix}"
        dotted.write_bytes(gzip.compress(content) if suffix else content)
    assert not official.find_missing(tmp_path)
    images, labels = official.read_part(tmp_path, "test")
    assert len(images) == len(labels) == 100


def other_content(path: Path) -> bytes:
    """A file of MNIST's form with other values."""
    content = path.read_bytes()
    return content[:16] + bytes((value + 1) % 10 for value in content[16:])


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_other_datasets_are_named(
    tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool, packed: bool
) -> None:
    known: list[Any] = []
    for path in unpack(tiny_mnist, tmp_path):
        archive = tmp_path / f"{path.name}.gz"
        path.write_bytes(other_content(path))
        archive.write_bytes(gzip.compress(path.read_bytes()))
        known.append((path.name, hashlib.md5(archive.read_bytes()).hexdigest()))
        if packed:
            path.unlink()
    if is_known:
        monkeypatch.setattr(torchvision.datasets.KMNIST, "resources", known)
    with pytest.raises(UserError) as error:
        official.read_part(tmp_path, "train")
    reason = "it is train-images-idx3-ubyte of KMNIST" if is_known else "another dataset of this form, or altered"
    message = str(error.value)
    assert all(part in message for part in (reason, "--data.data_dir", "--data.source sample"))
    assert not any(part in message for part in ("delete", "\n"))


def test_folder_of_torchvision_names_its_dataset(tiny_mnist: Path, tmp_path: Path) -> None:
    folder = tmp_path / "FashionMNIST" / "raw"
    shutil.copytree(tiny_mnist / "MNIST" / "raw", folder)
    assert len(official.read_part(folder, "test")[0]) == 100  # MNIST by its content
    images = folder / "t10k-images-idx3-ubyte.gz"
    images.write_bytes(gzip.compress(gzip.decompress(images.read_bytes())[:-1] + b"\1"))
    with pytest.raises(UserError, match="it is t10k-images-idx3-ubyte of FashionMNIST"):
        official.read_part(folder, "test")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bomb_is_not_unpacked(tiny_mnist: Path, tmp_path: Path, suffix: str) -> None:
    for path in unpack(tiny_mnist, tmp_path):
        path.unlink()
        bomb = gzip.compress(bytes(2**24)) * 8 if suffix else bytes(2**27)
        path.with_name(f"{path.name}{suffix}").write_bytes(bomb)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"more than [\d,]+ bytes"):
        official.read_part(tmp_path, "test")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23
