"""Read recipes: YAML files of options, which may come from a stranger."""

import contextlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from mnist_lit import UserError
from mnist_lit.checkpoints.trust import is_plain
from mnist_lit.files import expand, project_path

MAX_RECIPE = 100_000
"""Largest recipe in bytes; the config.yaml of a run has about 5,000."""


def find_recipes(args: list[str]) -> list[str]:
    """The arguments, with files in place of the names of the project's recipes, as in `--config ds_cnn_v2`."""
    found = []
    for option, arg in pairwise(["", *args]):
        if arg.startswith("--config="):
            found.append(f"--config={_find_recipe(arg.removeprefix('--config='))}")
        else:
            found.append(_find_recipe(arg) if option in ("-c", "--config") else arg)
    return found


def _find_recipe(name: str) -> str:
    if name not in recipe_names() or expand(name).is_file():
        return name
    return str(project_path(f"configs/{name}.yaml"))


def recipe_names() -> list[str]:
    """The names of the project's recipes."""
    return sorted(file.stem for file in project_path("configs").glob("*.yaml"))


def names_backbone(args: list[str]) -> bool:
    """Whether an option or a recipe among the arguments names the network.

    Raises:
        UserError: A recipe is not one.
    """
    if any(arg.partition("=")[0] == "--model.backbone" for arg in args):
        return True
    files = [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    files += [file for option, file in pairwise(args) if option in ("-c", "--config")]
    for file in files:
        with contextlib.suppress(OSError):  # the parser reports it
            recipe = read_recipe(expand(file))
            if isinstance(recipe, dict) and isinstance(recipe.get("model"), dict) and "backbone" in recipe["model"]:
                return True
    return False


def read_recipe(path: Path) -> Any:
    """The content of a recipe, which is plain values.

    Raises:
        OSError: The file cannot be read.
        UserError: It is not YAML, or holds more than a recipe may.
    """
    with path.open("rb") as file:
        content = file.read(MAX_RECIPE + 1)
    try:
        recipe = yaml.safe_load(content.decode()) if len(content) <= MAX_RECIPE else None
    except Exception as error:  # YAML raises many kinds: for deep nesting, numbers, dates
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a recipe: it must be YAML text with plain values ({reason}).") from error
    if len(content) > MAX_RECIPE or not is_plain(recipe):
        raise UserError(f"{path} is not a recipe: it may hold only plain values, and not too many.")
    return recipe
