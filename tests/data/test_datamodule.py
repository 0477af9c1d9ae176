import gzip
import http.server
import re
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torchvision
from helpers.commands import SMALL
from helpers.processes import drop_capabilities, finish, start
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, SequentialSampler

from mnist_lit import UserError
from mnist_lit.data import official
from mnist_lit.data.batches import ShuffledBatches
from mnist_lit.data.datamodule import MNISTDataModule

NAMES = tuple(official.OFFICIAL)


def prepared(stage: str = "fit", **options: Any) -> MNISTDataModule:
    module = MNISTDataModule(**options)
    module.prepare_data()
    module.setup(stage)
    return module


def copies(source: Path, target: Path, unpack: bool) -> Path:
    """The official files' tiny likenesses, directly in `target`."""
    target.mkdir(exist_ok=True)
    for path in (source / "MNIST" / "raw").iterdir():
        if unpack:
            (target / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        else:
            shutil.copy(path, target)
    return target


def test_the_last_training_images_are_held_out(tiny_mnist: Path) -> None:
    module = prepared(data_dir=str(tiny_mnist), val_size=50)
    train, val = module.splits["train"], module.splits["val"]
    for kind, shape in (("images", (300, 1, 28, 28)), ("labels", (300,))):
        whole = official.read(tiny_mnist, f"train-{kind}-idx{3 if kind == 'images' else 1}-ubyte")
        both = torch.cat([getattr(train, kind), getattr(val, kind)])
        assert torch.equal(both, torch.from_numpy(whole).view(shape).to(both.dtype))
    assert len(val) == 50


@pytest.mark.parametrize(
    ("stage", "splits"), [("fit", {"train", "val"}), ("validate", {"val"}), ("test", {"test"}), ("predict", {"test"})]
)
def test_a_stage_reads_only_what_it_needs(tiny_mnist: Path, stage: str, splits: set[str]) -> None:
    module = prepared(stage, data_dir=str(tiny_mnist), val_size=50)
    assert module.splits.keys() == splits
    assert ("t10k-images-idx3-ubyte" in module.record()["md5"]) == ("test" in splits)


def test_batches_are_whole_uint8_and_shuffled_in_training_alone(tiny_mnist: Path) -> None:
    module = prepared(data_dir=str(tiny_mnist), val_size=50, batch_size=100)
    train = list(module.train_dataloader())
    assert [tuple(images.shape) for images, _ in train] == [(100, 1, 28, 28), (100, 1, 28, 28), (50, 1, 28, 28)]
    assert train[0][0].dtype == torch.uint8
    assert not torch.equal(torch.cat([labels for _, labels in train]), module.splits["train"].labels)
    loader = module.val_dataloader()
    assert isinstance(loader, torch.utils.data.DataLoader)
    ((images, labels),) = list(loader)
    assert torch.equal(images, module.splits["val"].images)
    assert torch.equal(labels, module.splits["val"].labels)


def test_the_order_of_an_epoch_is_the_one_that_torch_draws(tiny_mnist: Path) -> None:
    module = prepared(data_dir=str(tiny_mnist), val_size=50, batch_size=100)
    torch.manual_seed(0)
    ours = [list(module.train_dataloader()) for _ in range(2)]
    train = module.splits["train"]
    torch.manual_seed(0)
    theirs = [list(DataLoader(train, 100, shuffle=True, collate_fn=lambda batch: batch)) for _ in range(2)]
    for epoch, expected in zip(ours, theirs, strict=True):
        for (images, labels), (their_images, their_labels) in zip(epoch, expected, strict=True):
            assert torch.equal(images, their_images)
            assert torch.equal(labels, their_labels)
    assert not torch.equal(ours[0][0][1], ours[1][0][1])
    # another sampler, as Lightning may put in its place, has its own way
    assert list(ShuffledBatches(SequentialSampler(range(5)), 2, drop_last=False)) == [[0, 1], [2, 3], [4]]


def test_batches_to_overfit_are_the_first_ones_each_epoch(tiny_mnist: Path) -> None:
    module = prepared(data_dir=str(tiny_mnist), val_size=50, batch_size=100)
    module.trainer = Trainer(accelerator="cpu", overfit_batches=2, logger=False, enable_checkpointing=False)
    loader = module.train_dataloader()
    for _ in range(2):
        assert torch.equal(next(iter(loader))[1], module.splits["train"].labels[:100])


@pytest.mark.parametrize("unpack", [False, True])
def test_files_directly_in_the_folder_are_found(tiny_mnist: Path, tmp_path: Path, unpack: bool) -> None:
    module = prepared("test", data_dir=str(copies(tiny_mnist, tmp_path, unpack)))
    assert len(module.splits["test"]) == 100


def flip(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("unpack", "damage", "told"),
    [
        pytest.param(True, flip, "its MD5 is", id="altered"),
        pytest.param(True, lambda content: content[:-10], "bytes, the official one", id="truncated"),
        pytest.param(True, lambda content: b"\0" * 4 + content[4:], "magic number", id="not IDX"),
        pytest.param(True, lambda _: b"", "it has 0 bytes", id="empty"),
        pytest.param(False, lambda content: content[:-10], "does not unpack", id="truncated gz"),
        pytest.param(False, lambda _: b"<html>not found</html>", "does not unpack", id="not gz"),
    ],
)
def test_a_damaged_file_is_one_line(
    tiny_mnist: Path, tmp_path: Path, name: str, unpack: bool, damage: Any, told: str
) -> None:
    path = copies(tiny_mnist, tmp_path, unpack) / (name if unpack else name + ".gz")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as error:
        prepared("fit" if "train" in name else "test", data_dir=str(tmp_path), val_size=50)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in (str(path), told, "delete it", "--data.source sample"))


def test_swapped_files_are_named(tiny_mnist: Path, tmp_path: Path) -> None:
    folder = copies(tiny_mnist, tmp_path, unpack=True)
    (folder / NAMES[3]).rename(folder / NAMES[1])
    shutil.copy(folder / NAMES[1], folder / NAMES[3])
    with pytest.raises(UserError, match=f"{NAMES[1]} is not the official MNIST file \\(it holds {NAMES[3]}\\)"):
        prepared(data_dir=str(folder), val_size=50)


def test_a_missing_file_without_a_network_is_one_line(
    tiny_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])  # where nothing listens
    folder = copies(tiny_mnist, tmp_path, unpack=False)
    (folder / f"{NAMES[2]}.gz").unlink()
    with pytest.raises(UserError) as error:
        prepared(data_dir=str(folder))
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in (f"{NAMES[2]} is missing in {folder}", "--data.source sample"))


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves the files of a folder, as `fault` says."""

    folder = Path()
    fault = ""
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        Mirror.asked.append(self.path)
        content = (self.folder / self.path[1:]).read_bytes()
        self.send_response(404 if self.fault == "missing" else 200)
        self.end_headers()
        if self.fault == "stalls":
            self.wfile.write(content[:100])
            time.sleep(2)
        elif self.fault != "missing":
            self.wfile.write(content[: 100 if self.fault == "torn" else None] if self.fault != "other" else b"<html>")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


@pytest.fixture
def mirror(tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a mirror of the tiny MNIST."""
    monkeypatch.setattr(Mirror, "folder", tiny_mnist / "MNIST" / "raw")
    monkeypatch.setattr(Mirror, "asked", [])
    monkeypatch.setattr(official, "TIMEOUT_S", 0.5)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", [address])
        yield address
        server.shutdown()


@pytest.mark.usefixtures("mirror")
def test_what_is_missing_is_downloaded(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / f"{NAMES[0]}.partial").write_bytes(b"of a download that was killed")
    assert len(prepared("test", data_dir=str(tmp_path)).splits["test"]) == 100
    assert sorted(path.name for path in raw.iterdir()) == sorted(NAMES)
    prepared("test", data_dir=str(tmp_path))
    assert len(Mirror.asked) == 4


@pytest.mark.usefixtures("mirror")
@pytest.mark.parametrize(
    ("fault", "told"),
    [("stalls", "timed out"), ("missing", "404"), ("torn", "ended before"), ("other", "Not a gzipped file")],
)
def test_a_download_that_fails_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, told: str
) -> None:
    monkeypatch.setattr(Mirror, "fault", fault)
    with pytest.raises(UserError) as error:
        prepared(data_dir=str(tmp_path / "data"))
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(Mirror, "fault", "")
    prepared("test", data_dir=str(tmp_path / "data"))  # the next run just works


def use_mirror(address: str) -> None:
    torchvision.datasets.MNIST.mirrors = [address]


def test_two_processes_prepare_one_folder(mirror: str, tmp_path: Path) -> None:
    args = ["fit", *SMALL, "--trainer.max_epochs=1", "--trainer.logger=false", f"--data.data_dir={tmp_path / 'data'}"]
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir()
    for process in [start(folder, args, partial(use_mirror, mirror)) for folder in folders]:
        assert finish(process) == 0
    assert len(Mirror.asked) == 4
    assert sorted(path.name for path in (tmp_path / "data" / "MNIST" / "raw").iterdir()) == sorted(NAMES)


def test_a_folder_that_cannot_be_written_to_is_told(mirror: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir(mode=0o555)
    args = ["fit", *SMALL, f"--data.data_dir={tmp_path / 'mine' / 'data'}"]
    assert finish(start(tmp_path, args, partial(use_mirror, mirror), drop_capabilities)) == 1
    told = (tmp_path / "err").read_text()
    assert re.search("error: .* could not be downloaded .*Permission denied.*name their folder with", told)
    assert "Traceback" not in told


def test_what_was_not_unpacked_to_its_end_is_passed_over(tiny_mnist: Path, tmp_path: Path) -> None:
    folder = copies(tiny_mnist, tmp_path, unpack=False)
    (folder / NAMES[2]).write_bytes(b"torn")
    assert len(prepared("test", data_dir=str(folder)).splits["test"]) == 100


@pytest.mark.parametrize("val_size", [0, -5, 300, 5_000])
def test_a_validation_split_that_does_not_fit_is_refused(tiny_mnist: Path, val_size: int) -> None:
    with pytest.raises(UserError, match=f"--data.val_size {val_size}"):
        prepared(data_dir=str(tiny_mnist), val_size=val_size)


def test_the_sample_is_split_digit_by_digit() -> None:
    module = prepared(source="sample")
    module.setup("test")
    for split, count in {"train": 400, "val": 50, "test": 50}.items():
        assert torch.bincount(module.splits[split].labels).tolist() == [count] * 10
    images = torch.cat([split.images for split in module.splits.values()]).flatten(1)
    assert len(torch.unique(images, dim=0)) == 5_000
    other = prepared("test", source="sample", val_size=100)
    assert torch.equal(module.splits["test"].images, other.splits["test"].images)


def test_the_official_files_pass(official_mnist: str) -> None:
    module = prepared(data_dir=official_mnist)
    module.setup("test")
    assert {name: len(split) for name, split in module.splits.items()} == {
        "train": 55_000,
        "val": 5_000,
        "test": 10_000,
    }
    assert module.splits["train"].images.float().mean().item() / 255 == pytest.approx(0.1307, abs=0.0005)
