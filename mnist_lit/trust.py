"""What a file that someone else may have written is allowed to name."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from mnist_lit import UserError

PACKAGES = frozenset({"mnist_lit", "torch", "torchvision"})
"""Whose classes a checkpoint may name: importing any other runs what its author wrote."""

FOLDERS = ("data_dir", "default_root_dir", "save_dir", "dirpath")
"""Options that hold a path, which may look like that of a class, and is never imported."""


def foreign(settings: Any) -> set[str]:
    """The import paths in settings, of whatever they are made, that are not of `PACKAGES`."""
    return {text for text in _texts(settings) if _is_import_path(text) and text.partition(".")[0] not in PACKAGES}


def check(settings: Any, source: str | Path, trusted: Collection[str]) -> None:
    """Refuse settings that would have Python import what is not trusted.

    Args:
        settings: Dictionaries, lists and plain values, as a checkpoint or a recipe holds them.
        source: The file that they come from.
        trusted: Packages, modules or classes that are trusted beside `PACKAGES`.

    Raises:
        UserError: They name something else.
    """
    for path in sorted(foreign(settings)):
        if not any(path == name or path.startswith(f"{name}.") for name in trusted):
            raise UserError(
                f"{source} names {path}, and to import that is to run whatever its author wrote: if you trust it, "
                f"give --trust {path.partition('.')[0]} too."
            )


def _texts(settings: Any) -> Iterator[str]:
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, dict):
        for key, value in settings.items():
            if key not in FOLDERS:
                yield from _texts(key)
                yield from _texts(value)
    elif isinstance(settings, (list, tuple, set)):
        for value in settings:
            yield from _texts(value)


def _is_import_path(text: str) -> bool:
    return "." in text and all(part.isidentifier() for part in text.split("."))
