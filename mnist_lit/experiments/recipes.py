"""Recipes that are to be run: what each says, and the folder that holds the plan of them."""

import contextlib
import io
import json
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from mnist_lit import UserError, files
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.experiments.report import folder_of_run
from mnist_lit.run.lightning_cli import run

NEEDED: dict[str, Callable[[Any], bool]] = {
    "ckpt_path": lambda path: path is not None,  # each run begins anew
    "seed_everything": lambda seed: isinstance(seed, bool),  # a number to count up from
    "data.images": bool,  # recipes are measured on MNIST's images
    "trainer.devices": lambda devices: len(devices) > 1 if isinstance(devices, list) else str(devices) != "1",
    "trainer.num_nodes": lambda nodes: nodes != 1,  # a run is one process's
    "trainer.fast_dev_run": bool,
    "trainer.logger": lambda logger: logger not in (None, True),  # the curves are read back from TensorBoard's
    "trainer.enable_checkpointing": lambda enabled: enabled is False,
    "trainer.limit_val_batches": lambda batches: batches == 0,
    "trainer.limit_test_batches": lambda batches: batches is not None,  # the whole test set is what is told
    "trainer.overfit_batches": bool,
    "trainer.val_check_interval": lambda interval: interval is not None,  # a point of each curve an epoch
}
"""What an option must not be for a comparison, or a search, to be made."""


def resolve(
    configs: list[str], flags: list[str], changes: Iterable[list[str]]
) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """Each recipe, and each with changes, by its name: its arguments, and every option of its fit.

    The network is built and the data are read, so that a mistake is told before any run.

    Raises:
        UserError: A recipe cannot be run, or two have one name.
        SystemExit: An option is misspelt or of the wrong kind.
    """
    recipes: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for config, change in product(configs, [[], *changes]):
        name = ", ".join([Path(config).stem, *change])
        recipe = ["--config", config, *flags, *(f"--{option}" for option in change)]
        text = io.StringIO()
        try:
            with contextlib.redirect_stdout(text):
                run(["fit", *recipe, "--print_config"])
        except SystemExit as end:
            if end.code:
                raise
        folders = [folder_of_run(Path(), other, 0) for other in recipes]
        if folder_of_run(Path(), name, 0) in folders:
            raise UserError(f"Two recipes are named {name}: rename or leave out one.")
        if len(name.encode()) > 200:  # of the 255 that a folder's name may have
            raise UserError(f"The changes of {name} are too many for a folder's name: write a recipe with them.")
        resolved = yaml.safe_load(text.getvalue())
        for key, unfit in NEEDED.items():
            part, _, option = key.rpartition(".")
            value = (resolved[part] if part else resolved)[option]
            if unfit(value):
                raise UserError(f"{config}: this command cannot work with --{key} {str(value).lower()}: leave it out.")
        _build(resolved)
        recipes[name] = (recipe, resolved)
    return recipes


def _build(resolved: dict[str, Any]) -> None:
    """Build the classifier and the data module of a recipe, and read the data."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DigitClassifier, "model")
    parser.add_class_arguments(MNISTDataModule, "data")
    built = parser.instantiate_classes(parser.parse_object({part: resolved[part] for part in ("model", "data")}))
    built.data.prepare_data()
    for stage in ("fit", "test"):
        built.data.setup(stage)


def begin(parent: Path, plan: dict[str, Any], resume: bool) -> Path:
    """A new folder that holds the plan; or to resume, the newest one that holds the same plan.

    Raises:
        UserError: There is nothing to resume, or nothing with the same plan but for the command that began it.
    """
    if not resume:
        folder = parent / f"version_{files.new_version(parent)}"
        files.write(folder / "plan.json", (json.dumps(plan, indent=2) + "\n").encode())
        return folder
    found = {int(path.name[8:]): path for path in parent.glob("version_*") if path.name[8:].isdecimal()}
    plans = [path / "plan.json" for _, path in sorted(found.items(), reverse=True) if (path / "plan.json").exists()]
    for path in plans:
        begun = json.loads(path.read_text())
        if begun | {"begun_with": ""} == plan | {"begun_with": ""}:
            return path.parent
    if not plans:
        raise UserError(f"There is nothing to resume in {parent}: leave out --resume.")
    begun_with = json.loads(plans[0].read_text())["begun_with"]
    raise UserError(
        f"Nothing was begun with these options and recipes; {plans[0].parent} was begun by `{begun_with}`, with what "
        "the recipes said then. Give the same, or leave out --resume."
    )
