"""Train and test several recipes in one process, and compare them."""

import argparse
import contextlib
import io
import json
import shlex
import shutil
import time
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from mnist_lit import UserError, durable
from mnist_lit.checkpoints import LOGS, project_path
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data import MNISTDataModule
from mnist_lit.report import Result, describe_environment, folder_of_run, multiply_adds, write_report
from mnist_lit.runner import run

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


def main(options: argparse.Namespace) -> None:
    """Run `mnist-lit compare` with its options.

    Raises:
        UserError: A recipe cannot be run, or there is nothing to resume.
    """
    flags = options.flags
    if any(flag.partition("=")[0] in ("-c", "--config") for flag in flags):
        raise UserError("Name the recipes first, without --config: mnist-lit compare CONFIG [CONFIG ...] [OPTION ...]")
    configs = options.names or [str(project_path(f"configs/ds_cnn_v{number}.yaml")) for number in (1, 2, 3)]
    recipes = resolve(configs, flags, [_split(change) for change in options.change])
    plan = {
        "begun_with": shlex.join(["mnist-lit", "compare", *(arg for arg in options.given if arg != "--resume")]),
        "seeds": options.seeds,
        "recipes": {name: recipe for name, (_, recipe) in recipes.items()},
    }
    root = next(iter(plan["recipes"].values()))["trainer"]["default_root_dir"] or "."
    folder = begin(Path(root) / LOGS / "compare", plan, options.resume)
    results: list[Result] = []
    for name, (recipe, resolved) in recipes.items():
        for seed in range(resolved["seed_everything"], resolved["seed_everything"] + options.seeds):
            print(f"\n{name}, seed {seed} (run {len(results) + 1} of {len(recipes) * options.seeds})")
            results.append(_train_and_test(folder, name, seed, recipe))
    write_report(folder, results)


def _split(change: str) -> list[str]:
    """The parts OPTION=VALUE of a `--change`."""
    try:
        parts = [part.lstrip("-") for part in shlex.split(change)]
    except ValueError:
        parts = []
    if not parts or not all("=" in part for part in parts):
        raise UserError(f"--change '{change}': give OPTION=VALUE, or several in one pair of quotes.")
    return parts


def resolve(
    configs: list[str], flags: list[str], changes: Iterable[list[str]]
) -> dict[str, tuple[list[str], dict[str, Any]]]:
    """Each recipe, and each with changes, by its name: its arguments, and every option of its fit.

    The network and the data module are built, so that a mistake is told before any run.

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
    """Build the classifier and the data module of a recipe."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DigitClassifier, "model")
    parser.add_class_arguments(MNISTDataModule, "data")
    parser.instantiate_classes(parser.parse_object({part: resolved[part] for part in ("model", "data")}))


def begin(parent: Path, plan: dict[str, Any], resume: bool) -> Path:
    """A new folder that holds the plan; or to resume, the newest one that holds the same plan.

    Raises:
        UserError: There is nothing to resume, or nothing with the same plan but for the command that began it.
    """
    if not resume:
        folder = parent / f"version_{durable.new_version(parent)}"
        durable.write(folder / "plan.json", (json.dumps(plan, indent=2) + "\n").encode())
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


def _train_and_test(folder: Path, name: str, seed: int, recipe: list[str]) -> Result:
    """The result of one run, which is trained and tested unless its folder holds the result already."""
    run_folder = folder_of_run(folder, name, seed)
    record = run_folder / "result.json"
    if record.exists():
        print("done before")
        done: Result = json.loads(record.read_text())
        return done
    if run_folder.exists():
        shutil.rmtree(run_folder)  # of a run that was interrupted: begun anew, it repeats it exactly
    quiet = "--trainer.enable_model_summary=false"  # what it tells is in the table
    start = time.perf_counter()
    fit = run(["fit", quiet, *recipe, f"--seed_everything={seed}"], run_folder)
    seconds = time.perf_counter() - start
    checkpoint = run_folder / "checkpoints" / "last.ckpt"
    test = run(["test", *recipe, f"--ckpt_path={checkpoint}", "--verbose=false"], run_folder)
    result: Result = {
        "recipe": name,
        "model": type(fit.model.backbone).__name__,
        "seed": seed,
        "parameters": fit.model.parameter_count,
        "multiply_adds": multiply_adds(fit.model),
        "epochs": fit.trainer.current_epoch,
        "train_images": len(fit.datamodule.splits["train"]),
        "val_accuracy": fit.trainer.callback_metrics["val/accuracy"].item(),
        "test_accuracy": test.trainer.callback_metrics["test/accuracy"].item(),
        "test_images": len(test.datamodule.splits["test"]),
        "seconds": round(seconds, 1),
        "environment": describe_environment(fit.trainer.strategy.root_device),
    }
    print(f"{name}, seed {seed}: {100 * result['test_accuracy']:.2f} % of the test images")
    durable.write(record, (json.dumps(result, indent=2) + "\n").encode())
    return result
