"""Create or find the folder of a comparison or a search."""

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mnist_lit import UserError, files
from mnist_lit.command_parser import command_line
from mnist_lit.experiments.recipes import Recipe
from mnist_lit.signals import Stopped

PLAN = "plan.json"


def plan_folder(command: str, options: argparse.Namespace, recipe: Recipe, plan: dict[str, Any]) -> Path:
    """Create a new folder with plan.json; with `--resume`, find the newest folder with the same plan.

    Args:
        command: `compare` or `search`.
        options: Its options.
        recipe: A recipe, whose `trainer.default_root_dir` contains the logs.
        plan: Everything that determines the results, except the number of seeds.

    Raises:
        UserError: No folder has the same plan.
    """
    parent = files.logs_folder(recipe.options["trainer"]["default_root_dir"]) / command
    begun_with = command_line(["mnist-lit", command, *(arg for arg in options.given if arg != "--resume")])
    plan = {"begun_with": begun_with, "seeds": options.seeds, **plan}
    if not options.resume:
        folder = parent / f"version_{files.new_version(parent)}"
        files.write_atomically(folder / PLAN, (json.dumps(plan, indent=2) + "\n").encode())
        return folder
    versions = {path.parent.name.removeprefix("version_"): path for path in parent.glob(f"version_*/{PLAN}")}
    newest_first = sorted(filter(str.isdecimal, versions), key=int, reverse=True)
    plans = {versions[number].parent: json.loads(versions[number].read_text()) for number in newest_first}
    if not plans:
        raise UserError(f"There is nothing to resume in {parent}: leave out --resume.")
    for folder, saved in plans.items():
        if saved | {"begun_with": ""} == plan | {"begun_with": ""}:
            return folder
    newest, saved = next(iter(plans.items()))
    raise UserError(
        f"No folder in {parent} has the same recipes and options. {newest} was started by `{saved['begun_with']}`, "
        "with recipes that may have changed since. Restore them and repeat that command, or leave out --resume."
    )


@contextlib.contextmanager
def resume_hint() -> Iterator[None]:
    """When a signal stops the command, print how to resume it."""
    try:
        yield
    except Stopped:
        print("Finished runs are saved. To resume, run the same command with --resume.")
        raise
