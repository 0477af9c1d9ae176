"""Save checkpoints atomically, and load them without running anything that they contain."""

import hashlib
import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mnist_lit import UserError
from mnist_lit.checkpoints.trust import is_plain
from mnist_lit.files import write_atomically

SETTINGS = {"model": "hyper_parameters", "data": "datamodule_hyper_parameters"}
"""Keys under which a checkpoint stores the settings of the classifier and of the data module."""

LEGACY_SETTINGS = {"hparams", "module_arguments"}
"""Keys of Lightning's first versions, which Lightning (2.6.6) still merges into the settings."""


class DamagedError(UserError):
    """A file is not a checkpoint, or its content has changed since it was saved."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Save a checkpoint so that its path always holds a complete file, and load it with its checksums verified.

    Lightning (2.6.6) writes through the temporary folder, does not sync the file to the disk, and reports no error in a
    folder without write permission.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint.

        Raises:
            UserError: The file cannot be written; an existing one is unchanged.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, buffer.getvalue())
        except OSError as error:
            unchanged = "; the existing file is unchanged" if path.exists() else ""
            raise UserError(
                f"{path} cannot be saved ({error.strerror}){unchanged}: free some space, change the permissions, or "
                "name another folder with --trainer.default_root_dir."
            ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return load(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a file, never a folder, even if a foreign checkpoint names one."""
        if Path(path).is_file():
            Path(path).unlink()


def load(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint, .ckpt or .safetensors, that holds only tensors and plain values.

    Raises:
        DamagedError: The file is not a checkpoint or is damaged; the message names an intact one beside it.
        UserError: The file cannot be read.
    """
    try:
        return load_exactly(path)
    except DamagedError as error:
        intact = next(filter(_is_intact, neighbors(Path(path))), None)
        raise DamagedError(f"{error} {intact.name} beside it is intact." if intact else str(error)) from error


def load_exactly(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint as `load` does, without suggesting another one.

    Raises:
        DamagedError: The file is not a checkpoint or is damaged.
        UserError: The file cannot be read.
    """
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):  # one slash, because Path merges two
        raise UserError(f"{path} is not a file: download it first, from a source that you trust.")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        checkpoint = (unpack_safetensors if Path(path).suffix == ".safetensors" else _unpickle)(content)
    except Exception as error:  # zipfile, torch and safetensors raise many kinds of errors for damaged files
        raise DamagedError(
            f"{path} is not a checkpoint: it is damaged, or holds more than weights and plain values."
        ) from error
    types = {"state_dict": dict, "global_step": int} | dict.fromkeys(SETTINGS.values(), dict)
    if (
        not isinstance(checkpoint, dict)
        or not {"state_dict", "global_step"} <= checkpoint.keys()
        or not all(isinstance(checkpoint.get(key, kind()), kind) for key, kind in types.items())
        or not all(isinstance(name, str) and _is_dense(weights) for name, weights in checkpoint["state_dict"].items())
    ):
        raise UserError(f"{path} is not a checkpoint that mnist-lit has saved.")
    if not all(is_plain(checkpoint.get(key)) for key in SETTINGS.values()):
        raise UserError(f"{path} was not saved by mnist-lit: its settings are not plain values, or too many.")
    return {key: value for key, value in checkpoint.items() if key not in LEGACY_SETTINGS}


def _is_dense(weights: Any) -> bool:
    """Whether weights are a tensor with values in memory; a file can also hold quantized, sparse and empty ones."""
    return (
        type(weights) in (torch.Tensor, torch.nn.Parameter)
        and weights.layout is torch.strided
        and weights.device.type == "cpu"
        and not weights.is_quantized
    )


def _unpickle(content: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(member.compress_type for member in archive.infolist()):  # torch never compresses: this may be a zip bomb
            raise ValueError("compressed")
        damaged = archive.testzip()  # compares the CRC-32 of each member, which torch.load (2.15) ignores
        if damaged is not None:
            raise ValueError(f"{damaged} is damaged")
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")


def unpack_safetensors(content: bytes) -> dict[str, Any]:
    """The checkpoint in a published safetensors file, whose metadata hold the settings and a SHA-256 of everything."""
    header, data = split_header(content)
    metadata = header.pop("__metadata__")
    if hashlib.sha256(metadata["mnist_lit"].encode() + data).hexdigest() != metadata["sha256"]:
        raise ValueError("the SHA-256 differs")
    checkpoint: dict[str, Any] = json.loads(metadata["mnist_lit"])
    if checkpoint.pop("tensors") != header:
        raise ValueError("the names or shapes differ")
    return checkpoint | {"state_dict": safetensors.torch.load(content)}


def split_header(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the data of a safetensors file: 8 bytes with the header's size, the header as JSON, the data."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def _is_intact(path: Path) -> bool:
    try:
        load_exactly(path)
    except UserError:
        return False
    return True


def neighbors(path: Path) -> list[Path]:
    """The other checkpoints in the folder of a checkpoint, newest first."""
    others = [other for other in path.parent.glob("*.ckpt") if other != path]
    return sorted(others, key=lambda other: other.stat().st_mtime, reverse=True)


def settings(checkpoint: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The settings of the classifier ("model") and of the data module ("data") of a loaded checkpoint.

    Those that Lightning has added, such as `_instantiator`, are left out.
    """
    return {
        part: {name: value for name, value in checkpoint.get(key, {}).items() if not str(name).startswith("_")}
        for part, key in SETTINGS.items()
    }
