"""Check files from somebody else: they may hold few plain values, and name classes that may be imported."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TRUSTED_MODULES = ("mnist_lit.backbones", "mnist_lit.augment", "torch.nn", "torchvision.ops")
"""Modules whose classes a checkpoint may always name. Other parts of torch and torchvision can run code or download
files that their arguments name."""

MAX_VALUES = 10_000
"""Most values in the settings of a checkpoint or in a recipe; those of a run have about 150."""

MAX_DEPTH = 50
"""Most levels of nested settings."""

FOLDERS = ("data_dir", "default_root_dir", "save_dir", "dirpath")
"""Settings that are folders, whose names may look like a class path."""


def is_plain(settings: Any) -> bool:
    """Whether nested settings hold only plain values, and not too many.

    Pickle and YAML can repeat a part many times or within itself, so a small file can hold billions of values.
    """
    left = [(settings, 0)]
    for _ in range(MAX_VALUES):
        if not left:
            return True
        value, depth = left.pop()
        if isinstance(value, dict | list | tuple):
            inner = [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
            if depth == MAX_DEPTH or len(inner) > MAX_VALUES:
                return False
            left += [(one, depth + 1) for one in inner]
        elif isinstance(value, str):
            if "\0" in value:  # no name of a file may hold it
                return False
        elif value is not None and not isinstance(value, int | float | datetime.date):  # YAML has dates
            return False
    return False


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
            if key not in FOLDERS:
                yield from _strings(value)
    elif isinstance(settings, (list, tuple)):
        for value in settings:
            yield from _strings(value)
