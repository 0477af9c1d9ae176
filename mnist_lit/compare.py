"""Train and test several recipes, and compare them."""

import argparse
import contextlib
import io
import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import product
from pathlib import Path
from typing import IO, Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback

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

RECORD = "result.json"
"""What a finished run's folder holds."""


class Run(NamedTuple):
    """One run of a comparison."""

    recipe: str
    seed: int
    args: list[str]
    options: dict[str, Any]
    """Every option of its fit."""

    def __str__(self) -> str:
        return f"{self.recipe}, seed {self.seed}"


Outcome = Result | UserError
"""What became of a run."""


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
    runs = [
        Run(name, seed, recipe, resolved)
        for name, (recipe, resolved) in recipes.items()
        for seed in range(resolved["seed_everything"], resolved["seed_everything"] + options.seeds)
    ]
    make = in_sequence
    place: AbstractContextManager[None] = contextlib.nullcontext()
    if options.ray:
        from mnist_lit.parallel import connected, in_parallel  # with Ray, which is an extra

        make, place = in_parallel, connected()
    with place:
        folder = begin(Path(root) / LOGS / "compare", plan, options.resume)
        outcomes = make(folder, runs)
    results = [outcome for outcome in outcomes if not isinstance(outcome, UserError)]
    if results:
        write_report(folder, results)
    failed = len(outcomes) - len(results)
    if failed:
        print(f"{failed} of {len(runs)} runs failed; to try again: the same command with --resume")
        raise SystemExit(1)  # each was told


def in_sequence(folder: Path, runs: list[Run]) -> list[Outcome]:
    """What became of each run, made one after the other."""
    outcomes: list[Outcome] = []
    for number, one in enumerate(runs, start=1):
        print(f"\n{one} (run {number} of {len(runs)})")
        outcome: Outcome | None = finished(folder, one)
        if outcome:
            print("done before")
        else:
            try:
                outcome = train_and_test(folder, one)
            except UserError as error:
                outcome = error
            tell(one, outcome)
        outcomes.append(outcome)
    return outcomes


def tell(one: Run, outcome: Outcome, out: IO[str] | None = None) -> None:
    """Print in a line what became of a run."""
    if isinstance(outcome, UserError):
        print(f"mnist-lit: error: {one}: {outcome}", file=sys.stderr)
    else:
        print(f"{one}: {100 * outcome['test_accuracy']:.2f} % of the test images", file=out)


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


def finished(folder: Path, one: Run) -> Result | None:
    """The result of a run, if its folder holds it."""
    record = folder_of_run(folder, one.recipe, one.seed) / RECORD
    return json.loads(record.read_text()) if record.exists() else None


def train_and_test(folder: Path, one: Run, callbacks: Sequence[Callback] = ()) -> Result:
    """Make a run, unless another process has made it meanwhile.

    Raises:
        UserError: It cannot be made, or has diverged.
    """
    run_folder = folder_of_run(folder, one.recipe, one.seed)
    run_folder.mkdir(parents=True, exist_ok=True)
    with durable.locked(run_folder):  # which a process may still write into whose comparison was killed
        done = finished(folder, one)
        if done:
            return done
        for path in run_folder.iterdir():  # of a run that was interrupted: begun anew, it repeats it exactly
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        quiet = "--trainer.enable_model_summary=false"  # what it tells is in the table
        start = time.perf_counter()
        fit = run(["fit", quiet, *one.args, f"--seed_everything={one.seed}"], run_folder, callbacks=callbacks)
        seconds = time.perf_counter() - start
        checkpoint = run_folder / "checkpoints" / "last.ckpt"
        tested = ["test", *one.args, f"--ckpt_path={checkpoint}", "--verbose=false"]
        test = run(tested, run_folder, callbacks=callbacks)
        result: Result = {
            "recipe": one.recipe,
            "model": type(fit.model.backbone).__name__,
            "seed": one.seed,
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
        durable.write(run_folder / RECORD, (json.dumps(result, indent=2) + "\n").encode())
    return result
