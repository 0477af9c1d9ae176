"""Train and test several recipes, and compare them."""

import argparse
import contextlib
import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, NamedTuple

from lightning.pytorch import Callback

from mnist_lit import UserError, files
from mnist_lit.checkpoints.io import LOGS, project_path
from mnist_lit.experiments.recipes import begin, resolve
from mnist_lit.experiments.report import Result, describe_environment, folder_of_run, multiply_adds, write_report
from mnist_lit.run.lightning_cli import run

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
        from mnist_lit.experiments.parallel import connected, in_parallel  # with Ray, which is an extra

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
    with files.locked(run_folder):  # which a process may still write into whose comparison was killed
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
        files.write(run_folder / RECORD, (json.dumps(result, indent=2) + "\n").encode())
    return result
