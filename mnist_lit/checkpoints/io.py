"""Checkpoints: how one is saved, found and read again."""

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]

from mnist_lit import UserError, files
from mnist_lit.checkpoints import trust

LOGS = "lightning_logs"
"""Folder of all runs."""

SEAL = b"sha256:"
"""What stands before the checksum (64 hexadecimal digits) at the end of a checkpoint's file."""

SEAL_SIZE = len(SEAL) + 64

SETTINGS = {"model": "hyper_parameters", "data": "datamodule_hyper_parameters"}
"""Where a checkpoint holds what the classifier and the data module were given."""

LEGACY = {"hparams", "module_arguments"}
"""Where Lightning's first versions held them."""

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
"""By what LightningCLI has Lightning build them again."""


class DamagedError(UserError):
    """A file is no checkpoint, or not as it was saved."""


class CheckpointIO(TorchCheckpointIO):
    """Saves checkpoints so that a file is the whole old or the whole new one, and tells when it is altered later.

    Lightning's (2.6.6) goes through another folder, does not see to it that the disk has it, and passes over a lack of
    permission. To be deleted when Lightning does as much.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Save a checkpoint with a checksum.

        Raises:
            UserError: The disk does not take it; what was there is as it was.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint | {"sealed": True}, buffer)
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, _seal(buffer.getvalue()))
        except OSError as error:
            kept = "; the one saved before is as it was" if path.exists() else ""
            raise UserError(
                f"{path} cannot be saved ({error.strerror}){kept}: make room, give yourself permission there, or name "
                "another folder with --trainer.default_root_dir."
            ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What `load` reads.

        Raises:
            UserError: It is no checkpoint, or an altered one.
        """
        return load(path)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a file, and nothing else that a checkpoint may have named."""
        if Path(path).is_file():
            Path(path).unlink()


def project_path(path: str) -> Path:
    """A file that comes with the project: in the package if it is installed, else in the checkout."""
    package = Path(__file__).parents[1]
    return package / path if (package / path).exists() else package.parent / path


def _seal(content: bytes) -> bytes:
    """A checkpoint's file with the checksum of all of it, as the comment that a zip archive may end with."""
    if content[-2:] != bytes(2):  # the length of the comment
        raise ValueError("torch.save has not written a zip archive without a comment")
    sealed = content[:-2] + SEAL_SIZE.to_bytes(2, "little") + SEAL
    return sealed + hashlib.sha256(sealed).hexdigest().encode()


def _is_whole(content: bytes, checkpoint: dict[str, Any]) -> bool:
    """Whether the bytes are those that were saved.

    Without a checksum are the checkpoints of Lightning alone, and of this project's first version: they do not say of
    themselves that they are sealed, which one that has lost its checksum does.
    """
    body, checksum = content[:-64], content[-64:]
    if not body.endswith(SEAL_SIZE.to_bytes(2, "little") + SEAL):
        return not checkpoint.get("sealed")
    return hashlib.sha256(body).hexdigest().encode() == checksum


def load(path: str | Path) -> dict[str, Any]:
    """A checkpoint, read so that nothing but tensors and plain values is let in.

    Raises:
        UserError: It cannot be read, is no checkpoint, was altered, or is more than weights and plain values.
    """
    try:
        return _read(path)
    except DamagedError as error:
        whole = next(filter(_is_readable, _neighbours(Path(path))), None)
        raise DamagedError(f"{error} {whole.name} beside it is whole." if whole else str(error)) from error


def _is_readable(path: Path) -> bool:
    try:
        _read(path)
    except UserError:
        return False
    return True


def _read(path: str | Path) -> dict[str, Any]:
    if re.match(r"[A-Za-z][\w+.-]+:/", str(path)):  # of Path, too, which makes one slash of two
        raise UserError(f"{path} is not a file: download it yourself, from where you trust it.")
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        checkpoint = (_unpack if Path(path).suffix == ".safetensors" else _unpickle)(content)
    except Exception as error:  # zipfile, torch and safetensors raise whatever the bytes lead them to
        raise DamagedError(f"{path} is not a checkpoint: damaged, or more than weights and plain values.") from error
    kinds = {"state_dict": dict, "global_step": int} | dict.fromkeys(SETTINGS.values(), dict)
    if (
        not isinstance(checkpoint, dict)
        or not {"state_dict", "global_step"} <= checkpoint.keys()
        or not all(isinstance(checkpoint.get(key, kind()), kind) for key, kind in kinds.items())
        or not all(isinstance(weights, torch.Tensor) for weights in checkpoint["state_dict"].values())
    ):
        raise UserError(f"{path} is not a checkpoint that mnist-lit has saved.")
    if Path(path).suffix != ".safetensors" and not _is_whole(content, checkpoint):
        raise DamagedError(f"{path} is damaged, by its checksum.")
    for key in LEGACY & checkpoint.keys():  # which Lightning (2.6.6) still merges into the settings
        del checkpoint[key]
    return checkpoint


def _unpickle(content: bytes) -> Any:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(member.compress_type for member in archive.infolist()):  # torch.save compresses nothing: a bomb
            raise ValueError("compressed")
    return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")


def pack(checkpoint: dict[str, Any]) -> bytes:
    """A checkpoint's weights and settings, without what a resumed run needs, as a safetensors file."""
    weights = {name: tensor.contiguous().clone() for name, tensor in checkpoint["state_dict"].items()}  # none shared
    kept = ("global_step", "pytorch-lightning_version", *SETTINGS.values())
    text = json.dumps({key: checkpoint[key] for key in kept if key in checkpoint})
    data = _header_and_data(safetensors.torch.save(weights))[1]
    checksum = hashlib.sha256(text.encode() + data).hexdigest()
    return safetensors.torch.save(weights, {"format": "pt", "mnist_lit": text, "sha256": checksum})


def _unpack(content: bytes) -> dict[str, Any]:
    """What `pack` has packed."""
    header, data = _header_and_data(content)
    told = header["__metadata__"]
    if hashlib.sha256(told["mnist_lit"].encode() + data).hexdigest() != told["sha256"]:
        raise ValueError("altered")
    checkpoint: dict[str, Any] = json.loads(told["mnist_lit"])
    return checkpoint | {"state_dict": safetensors.torch.load(content)}


def _header_and_data(content: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def settings(checkpoint: dict[str, Any], path: str | Path, trusted: Collection[str] = ()) -> dict[str, dict[str, Any]]:
    """What the classifier ("model") and the data module ("data") of a checkpoint were given.

    Args:
        checkpoint: What `load` has read.
        path: Its file.
        trusted: Packages, modules or classes that it may name beside those of `trust.MODULES`.

    Raises:
        UserError: It names others.
    """
    given = {part: dict(checkpoint.get(key, {})) for part, key in SETTINGS.items()}
    for values in given.values():
        if values.pop("_instantiator", INSTANTIATOR) != INSTANTIATOR:
            raise UserError(f"{path} would be built by something else than LightningCLI (_instantiator): not trusted.")
    trust.check(given, path, trusted)
    for name in ("backbone", "augment"):  # a text may be read as YAML, or name a file of it
        if isinstance(given["model"].get(name), str):
            raise UserError(f"{path} is not a checkpoint that mnist-lit has saved: its {name} is a text.")
    return {
        part: {name: value for name, value in values.items() if not str(name).startswith("_")}
        for part, values in given.items()
    }


def find(name: str, logs: Path = Path(LOGS), backbone: str | None = None, to_resume: bool = False) -> Path:
    """The file that a checkpoint is named by; for `last` and `best` that of the newest run, which is told.

    Where that one is damaged, it is the newest whole one beside it.

    Args:
        name: "last", "best" or a file.
        logs: Folder of runs.
        backbone: Import path of the network that the run must be of, if it matters.
        to_resume: Whether the run is to go on: it may not have made its first step; and it may not be a comparison's or
            a search's, whose report it would belie.

    Raises:
        UserError: There is none, or none that is whole.
    """
    if name not in ("last", "best"):
        return Path(name)
    without = {logs / folder for folder in ("reference", *(("compare", "search") if to_resume else ()))}
    found = [file for file in logs.glob(f"**/checkpoints/{name}.ckpt") if not without & set(file.parents)]
    for file in _by_age(found):
        whole, checkpoint = _whole(file)
        theirs = checkpoint.get("hyper_parameters", {}).get("backbone")
        is_of_it = backbone is None or (isinstance(theirs, dict) and theirs.get("class_path") == backbone)
        if is_of_it and (to_resume or checkpoint["global_step"]):
            rank_zero_only(print)(f"{name}: {whole}")  # once, of several processes
            return whole
    of = f" of {backbone.rpartition('.')[2]}" if backbone else ""
    raise UserError(f"{name}: no run{of} below {logs} has kept one. Run mnist-lit fit first.")


def _whole(file: Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint, or where it is damaged the newest whole one beside it."""
    for other in [file, *_neighbours(file)]:
        try:
            return other, _read(other)
        except UserError as error:
            rank_zero_only(print)(error)
    raise UserError(f"No checkpoint in {file.parent} is whole: name one of another run, or start anew.")


def _neighbours(file: Path) -> list[Path]:
    return _by_age([other for other in file.parent.glob("*.ckpt") if other != file])


def _by_age(files: list[Path]) -> list[Path]:
    return sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)
