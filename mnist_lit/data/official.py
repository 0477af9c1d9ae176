"""The four official files of MNIST: find, download, verify and read them."""

import contextlib
import gzip
import hashlib
import http.client
import io
import time
import urllib.error
import urllib.request
import zlib
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import KMNIST, MNIST, FashionMNIST

from mnist_lit import UserError
from mnist_lit.files import lock_folder, write_atomically


class OfficialFile(NamedTuple):
    """Size and MD5 checksum of an unpacked file."""

    size: int  # bytes
    md5: str  # detects accidents, not forgeries


OFFICIAL = {
    "train-images-idx3-ubyte": OfficialFile(47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": OfficialFile(60_008, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": OfficialFile(7_840_016, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": OfficialFile(10_008, "27ae3e4e09519cfbb04c329615203637"),
}

TIMEOUT_S = 30.0
"""Seconds without a byte after which a download fails."""

DOWNLOAD_LIMIT_S = 600.0
"""Seconds after which the download of a file fails; the largest has 10 MB, and so needs 17 kB/s."""


def read_part(folder: Path, part: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """The images, uint8 (N, 1, 28, 28), and labels, int64 (N,), of the official training or test set.

    Raises:
        UserError: A file is missing, cannot be read, or is not the official one.
    """
    prefix = "train" if part == "train" else "t10k"
    images = _read(folder, f"{prefix}-images-idx3-ubyte")
    labels = _read(folder, f"{prefix}-labels-idx1-ubyte")
    return images.unsqueeze(1), labels.long()


def _read(folder: Path, name: str) -> Tensor:
    """The array in an IDX file: a magic number, the sizes of the axes (big-endian int32), then the bytes."""
    path = _find(folder, name)
    if path is None:
        raise UserError(f"{name} is missing in {folder}.")
    limit = max(file.size for file in OFFICIAL.values())
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(limit + 1)  # one byte more shows that the file is too long, without unpacking a bomb
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _not_official(path, f"it does not unpack: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    axes = 3 if "images" in name else 1
    md5, official = _md5(content), OFFICIAL[name]
    other = {file.md5: name for name, file in OFFICIAL.items()}.get(md5) or _other_dataset(path)
    if other and other != name:
        raise _not_official(path, f"it is {other}")
    if len(content) != official.size:
        size = f"more than {limit:,}" if len(content) > limit else f"{len(content):,}"
        raise _not_official(path, f"it has {size} bytes, the official file has {official.size:,}")
    magic, *shape = np.frombuffer(content, dtype=">i4", count=1 + axes).tolist()
    if magic != 0x800 + axes:  # 8: unsigned bytes; then the number of axes
        raise _not_official(path, f"it starts with {magic}, not with the magic number {0x800 + axes}")
    if md5 != official.md5:
        raise _not_official(path, f"another dataset of this form, or altered: its MD5 is {md5}, not {official.md5}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=4 * (1 + axes)).view(shape)


def _find(folder: Path, name: str) -> Path | None:
    """The file, unpacked or as .gz, where torchvision puts it or directly in the folder."""
    layouts = (folder / "MNIST" / "raw", folder / "raw", folder)
    dotted = name.replace("-idx", ".idx")  # as some archives have it
    files = (name, f"{name}.gz", dotted, f"{dotted}.gz")
    found = [layout / file for layout in layouts for file in files if (layout / file).is_file()]
    complete = (path for path in found if path.suffix == ".gz" or path.stat().st_size == OFFICIAL[name].size)
    return next(complete, found[0] if found else None)  # skips a file that was not unpacked to its end


def find_missing(folder: Path) -> list[str]:
    """The names of the official files that are not in a folder."""
    return [name for name in OFFICIAL if _find(folder, name) is None]


def download_missing(folder: Path) -> None:
    """Download the missing files to where torchvision puts them; one process downloads, others wait for it.

    Raises:
        UserError: A file cannot be downloaded or written.
    """
    missing = find_missing(folder)
    if not missing:
        return
    raw = folder / "MNIST" / "raw"
    new_folders = [path for path in (raw, *raw.parents) if not path.exists()]
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with lock_folder(raw):
            for name in missing:
                if _find(folder, name) is None:  # another process may have downloaded it meanwhile
                    _download(name, raw / name)
    except OSError as error:
        raise UserError(
            f"{missing[0]} is missing in {folder} and could not be downloaded ({error}): put the four official MNIST "
            "files there, name their folder with --data.data_dir, or use --data.source sample, which needs no download."
        ) from error
    finally:
        for path in new_folders:
            with contextlib.suppress(OSError):
                path.rmdir()  # fails, as it should, if something was downloaded


def _download(name: str, target: Path) -> None:
    """Download a file from the first of torchvision's mirrors that has it, unpack it and verify it."""
    reason = "there is no mirror"
    for mirror in MNIST.mirrors:
        print(f"Downloading {name} from {mirror}")
        try:
            content = _fetch(f"{mirror}{name}.gz", OFFICIAL[name].size + 1)
        except (OSError, EOFError, zlib.error, http.client.HTTPException) as error:
            reason = f"{mirror}: {error}"
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            continue
        if _md5(content) == OFFICIAL[name].md5:
            write_atomically(target, content)
            return
        reason = f"{mirror} has another file"
    raise OSError(reason)


def _fetch(address: str, max_size: int) -> bytes:
    """Download and unpack at most `max_size` bytes of a .gz, in limited time."""
    packed, started_at = bytearray(), time.monotonic()
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as response:
        while len(packed) < max_size + 1000 and (part := response.read1(2**16)):
            packed += part
            if time.monotonic() > started_at + DOWNLOAD_LIMIT_S:
                raise TimeoutError(f"not complete after {DOWNLOAD_LIMIT_S:.0f} s")
    return gzip.GzipFile(fileobj=io.BytesIO(packed)).read(max_size)


_new_md5 = partial(hashlib.md5, usedforsecurity=False)


def _md5(content: bytes) -> str:
    return _new_md5(content).hexdigest()


def _other_dataset(path: Path) -> str | None:
    """The dataset whose files have MNIST's names, if the file, or the .gz that torchvision leaves beside it, is one."""
    archives = [file for file in (path, path.with_name(f"{path.name}.gz")) if file.suffix == ".gz" and file.is_file()]
    found = set()
    for archive in archives:
        with archive.open("rb") as file:
            found.add(hashlib.file_digest(file, _new_md5).hexdigest())
    for dataset in (FashionMNIST, KMNIST):
        if found & {md5 for _, md5 in dataset.resources} or dataset.__name__ in path.parts:
            return f"{path.name.removesuffix('.gz')} of {dataset.__name__}"
    return None


def _not_official(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is not the official MNIST file ({reason}): name the folder of MNIST, or a new one to download it to, "
        "with --data.data_dir, or use --data.source sample, which needs no download."
    )
