"""Recipes that are compared or searched: resolve all their options, and check that they can run."""

import contextlib
import io
import re
from collections.abc import Callable, Iterable
from functools import reduce
from itertools import product
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser

from mnist_lit import UserError
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.run.lightning_cli import run

UNSUPPORTED: dict[str, Callable[[Any], bool]] = {
    "ckpt_path": lambda path: path is not None,  # each run starts with new weights
    "seed_everything": lambda seed: isinstance(seed, bool),  # further seeds count up from a number
    "trainer.devices": lambda devices: len(devices) > 1 if isinstance(devices, list) else str(devices) != "1",
    "trainer.num_nodes": lambda nodes: nodes != 1,  # a run has one process
    "trainer.fast_dev_run": bool,
    "trainer.logger": lambda logger: logger not in (None, True),  # the report reads the curves from TensorBoard logs
    "trainer.enable_checkpointing": lambda enabled: enabled is False,  # the test loads the last checkpoint
    "trainer.limit_val_batches": lambda batches: batches == 0,
    "trainer.limit_test_batches": lambda batches: batches is not None,  # accuracies are those of the whole test set
    "trainer.overfit_batches": bool,
    "trainer.callbacks": lambda callbacks: "Finder" in str(callbacks),  # a recipe has one learning rate and batch size
    # each epoch ends with a validation
    "trainer.check_val_every_n_epoch": lambda epochs: epochs != 1,
    "trainer.max_steps": lambda steps: steps != -1,
    "trainer.max_time": lambda time: time is not None,
    "trainer.val_check_interval": lambda interval: interval is not None,  # the curves have one point per epoch
}
"""Options of `mnist-lit fit` that `compare` and `search` restrict, each with a test for the values they reject."""


class Recipe(NamedTuple):
    """A recipe, or a variant of it with changed options."""

    name: str
    """Name of the YAML file without its ending, followed by the changed options."""
    args: list[str]
    """Arguments of `mnist-lit fit`."""
    options: dict[str, Any]
    """All options of `mnist-lit fit`, including defaults."""

    def seeds(self, count: int) -> range:
        """Seeds of its runs."""
        first = self.options["seed_everything"]
        return range(first, first + count)


def run_folder(folder: Path, recipe: str, seed: int) -> Path:
    """Folder of one run of a recipe, within the folder of its comparison."""
    return folder / recipe.replace("/", "_") / f"seed_{seed}"


def resolve(configs: list[str], flags: list[str], changes: Iterable[list[str]], with_test: bool = True) -> list[Recipe]:
    """Resolve all options of each recipe, and of each recipe with each change.

    Also builds the networks and reads the data, so that mistakes are reported before the first run starts.

    Args:
        configs: YAML files of the recipes.
        flags: Options for all recipes.
        changes: Options of one variant of each recipe, as `name=value`.
        with_test: Whether the runs read the test set.

    Raises:
        UserError: A recipe cannot run or reads the test set without being allowed to, or two have the same name.
        SystemExit: An option is unknown or has the wrong type.
    """
    if any(flag.partition("=")[0] in ("-c", "--config") for flag in flags):
        raise UserError("Name the recipes first, before all options and without --config.")
    if any(flag.partition("=")[0] == "--ckpt_path" for flag in flags):
        raise UserError("This command starts new runs: leave out --ckpt_path.")
    recipes: list[Recipe] = []
    for config, change in product(configs, [[], *changes]):
        args = ["--config", config, *flags, *(f"--{option}" for option in change)]
        recipe = Recipe(", ".join([Path(config).stem, *change]), args, _all_options(args))
        if run_folder(Path(), recipe.name, 0) in [run_folder(Path(), other.name, 0) for other in recipes]:
            raise UserError(f"Two recipes are named {recipe.name}: rename or leave out one.")
        if len(recipe.name.encode()) > 200:  # the limit for a folder's name is 255 bytes
            raise UserError(f"{recipe.name} has too many changes for a folder's name: write them into a recipe.")
        check_supported(config, recipe.options, UNSUPPORTED, "this command", "leave it out")
        if recipe.options["watch_test"] and not with_test:
            raise UserError("This command does not read the test set: leave out --watch_test.")
        data = build(recipe.options)[1]
        data.prepare_data()
        # "validate" reads and splits the training images, too, but does not draw variants
        for stage in ("validate", "test") if with_test else ("validate",):
            data.setup(stage)
        recipes.append(recipe)
    return recipes


def check_supported(
    name: str, options: dict[str, Any], unsupported: dict[str, Callable[[Any], bool]], who: str, way_out: str
) -> None:
    """Check the options of a recipe.

    Args:
        name: The recipe.
        options: All options of `mnist-lit fit`.
        unsupported: Restricted options, each with a test for the values that are rejected.
        who: The part of the program that rejects them.
        way_out: The advice to the user.

    Raises:
        UserError: An option has a rejected value.
    """
    for key, is_unsupported in unsupported.items():
        value = reduce(getitem, key.split("."), options)
        if is_unsupported(value):
            shown = ", ".join(re.findall(r"class_path'?[=:] ?'([\w.]+)'", str(value))) or str(value).lower()
            raise UserError(f"{name}: {who} cannot work with --{key} {shown}: {way_out}.")


def _all_options(args: list[str]) -> dict[str, Any]:
    """Options of `mnist-lit fit` with these arguments, including defaults."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            run(["fit", *args, "--print_config"])
    except SystemExit as end:
        if end.code:
            raise
    options: dict[str, Any] = yaml.safe_load(text.getvalue())
    return options


def build(options: dict[str, Any]) -> tuple[DigitClassifier, MNISTDataModule]:
    """Build the classifier and the data module, with the random numbers that `mnist-lit fit` would draw."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DigitClassifier, "model")
    parser.add_class_arguments(MNISTDataModule, "data")
    built = parser.instantiate(parser.parse_object({part: options[part] for part in ("model", "data")}))
    return built.model, built.data
