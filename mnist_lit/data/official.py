"""The official files of MNIST: which they are, and how one is found, verified and read."""

import gzip
import hashlib
import http.client
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mnist_lit import UserError, files


class OfficialFile(NamedTuple):
    """What the official, unpacked file is known by."""

    size: int  # bytes
    md5: str


OFFICIAL = {
    "train-images-idx3-ubyte": OfficialFile(47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": OfficialFile(60_008, "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": OfficialFile(7_840_016, "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": OfficialFile(10_008, "27ae3e4e09519cfbb04c329615203637"),
}


TIMEOUT_S = 30.0
"""Seconds without a byte after which a download is given up."""


def find(folder: Path, name: str) -> Path | None:
    """The official file of that name, unpacked or .gz: where torchvision puts it, or directly in the folder."""
    layouts = (folder / "MNIST" / "raw", folder / "raw", folder)
    candidates = (layout / file for layout in layouts for file in (name, name + ".gz"))
    found = [path for path in candidates if path.is_file()]
    whole = (path for path in found if path.suffix == ".gz" or path.stat().st_size == OFFICIAL[name].size)
    return next(whole, found[0] if found else None)  # passes over what was not unpacked to its end


def read(folder: Path, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array in the official file of that name: images (N, 28, 28) or labels (N,).

    The format is IDX: a magic number, the sizes of the axes (big-endian int32), then the bytes.

    Raises:
        UserError: The file is missing, cannot be read, or is not the official one.
    """
    path = find(folder, name)
    if path is None:
        raise UserError(f"{name} is missing in {folder}.")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, f"it does not unpack: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    axes = 3 if "images" in name else 1
    checksum, official = md5(content), OFFICIAL[name]
    namesake = next((other for other, file in OFFICIAL.items() if file.md5 == checksum and other != name), None)
    if namesake:
        raise _damaged(path, f"it holds {namesake}")
    if len(content) != official.size:
        raise _damaged(path, f"it has {len(content):,} bytes, the official one {official.size:,}")
    magic, *shape = np.frombuffer(content, dtype=">i4", count=1 + axes).tolist()
    if magic != 0x800 + axes:  # 8: unsigned bytes; then the number of axes
        raise _damaged(path, f"it starts with {magic}, not with the magic number {0x800 + axes}")
    if checksum != official.md5:
        raise _damaged(path, f"its MD5 is {checksum}, not {official.md5}")
    return np.frombuffer(bytearray(content), dtype=np.uint8, offset=4 * (1 + axes)).reshape(shape)


def download(folder: Path, name: str, mirrors: Iterable[str]) -> None:
    """Download the official file of that name to where torchvision puts it, unpacked; only a whole one gets there.

    Args:
        folder: The folder of the data.
        name: The file's name.
        mirrors: Addresses to try, each up to the name.

    Raises:
        OSError: No mirror has it, or it cannot be written.
    """
    reason = "there is no mirror"
    for mirror in mirrors:
        print(f"Downloading {name} from {mirror}")
        try:
            with urllib.request.urlopen(f"{mirror}{name}.gz", timeout=TIMEOUT_S) as answer:
                content = gzip.GzipFile(fileobj=answer).read(OFFICIAL[name].size + 1)  # and no more, whatever comes
        except (OSError, EOFError, zlib.error, http.client.HTTPException) as error:
            reason = f"{mirror}: {error}"
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            continue
        if md5(content) == OFFICIAL[name].md5:
            files.write(folder / "MNIST" / "raw" / name, content)
            return
        reason = f"{mirror} has another file"
    raise OSError(reason)


def md5(content: bytes) -> str:
    """The MD5 checksum, as the official ones are given: against accidents, not against forgers."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _damaged(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} is not the official MNIST file ({why}): delete it and run again to download it, or use "
        "--data.source sample, which needs no download."
    )
