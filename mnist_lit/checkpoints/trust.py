"""Which classes a file from somebody else may name: importing a class runs the code of its module."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

TRUSTED_MODULES = ("mnist_lit.backbones", "mnist_lit.augment", "torch.nn", "torchvision.ops")
"""Modules whose classes a checkpoint may always name. Other parts of torch and torchvision can run code or download
files that their arguments name."""


def foreign_modules(settings: Any) -> set[str]:
    """The modules, other than the trusted ones, of all class paths in nested settings."""
    paths = {text for text in _strings(settings) if "." in text and all(map(str.isidentifier, text.split(".")))}
    return {path.rpartition(".")[0] for path in paths if not path.startswith(tuple(f"{m}." for m in TRUSTED_MODULES))}


def refusal(source: str | Path, class_path: str) -> str:
    """The error message for a class that is not trusted."""
    return (
        f"{source} names {class_path}, and importing it runs code of its author: if you trust it, add --trust "
        f"{class_path.rpartition('.')[0]}."
    )


def _strings(settings: Any) -> Iterator[str]:
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, dict):
        for key, value in settings.items():
            if key not in (
                "data_dir",
                "default_root_dir",
                "save_dir",
                "dirpath",
            ):  # a folder may look like a class path
                yield from _strings(value)
    elif isinstance(settings, (list, tuple)):
        for value in settings:
            yield from _strings(value)
