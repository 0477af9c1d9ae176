"""What a file that someone else may have written is allowed to name."""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from jsonargparse import _common, set_parsing_settings

from mnist_lit import UserError

MODULES = ("mnist_lit.backbones", "mnist_lit.augment", "torch.nn", "torchvision.ops")
"""Whose classes a checkpoint may name: importing another package's runs what its author wrote, and elsewhere in torch
and torchvision there are functions that run or download what they are given."""

FOLDERS = ("data_dir", "default_root_dir", "save_dir", "dirpath")
"""Options that hold a path, which may look like that of a class, and is never imported."""


def foreign(settings: Any) -> set[str]:
    """The import paths in settings, of whatever they are made, that are not of `MODULES`."""
    return {text for text in _texts(settings) if _is_import_path(text) and not _is_of(text, MODULES)}


def modules(settings: Any) -> set[str]:
    """The modules of the import paths in settings that are not of `MODULES`."""
    return {path.rpartition(".")[0] for path in foreign(settings)}


def check(settings: Any, source: str | Path, trusted: Collection[str]) -> None:
    """Refuse settings that would have Python import what is not trusted.

    Args:
        settings: Dictionaries, lists and plain values, as a checkpoint or a recipe holds them.
        source: The file that they come from.
        trusted: Packages, modules or classes that are trusted beside `MODULES`.

    Raises:
        UserError: They name something else.
    """
    for path in sorted(foreign(settings)):
        if not _is_of(path, trusted):
            raise UserError(refusal(source, path))


def refusal(source: str | Path, path: str) -> str:
    """What a user is told of an import path that is not trusted."""
    return (
        f"{source} names {path}, and to import that is to run whatever its author wrote: if you trust it, give --trust "
        f"{path.rpartition('.')[0]} too."
    )


@contextlib.contextmanager
def limited(trusted: Collection[str]) -> Iterator[None]:
    """Let jsonargparse import nothing within but what is of `MODULES` or trusted, however a text leads it there.

    Raises:
        UserError: What is trusted has not the form of an import path.
    """
    for name in trusted:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"--trust takes packages or modules, as Python imports them, not {name}.")
    keys = ("import_path_verdicts", "import_paths_enforced")
    before = {key: _common.parsing_settings[key] for key in keys}  # jsonargparse (4.53) can only be told to add to them
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[*MODULES, *trusted])
    try:
        yield
    finally:
        _common.parsing_settings.update(before)


def _texts(settings: Any) -> Iterator[str]:
    if isinstance(settings, str):
        yield settings
    elif isinstance(settings, dict):
        for key, value in settings.items():
            if not (key in FOLDERS and isinstance(value, str)):
                yield from _texts(key)
                yield from _texts(value)
    elif isinstance(settings, (list, tuple, set)):
        for value in settings:
            yield from _texts(value)


def _is_of(path: str, names: Collection[str]) -> bool:
    return any(path == name or path.startswith(f"{name}.") for name in names)


def _is_import_path(text: str) -> bool:
    return "." in text and all(part.isidentifier() for part in text.split("."))
