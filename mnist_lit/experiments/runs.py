"""One run of a comparison: train a recipe with one seed, test it, and save the result."""

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

from lightning.pytorch import Callback

from mnist_lit import UserError, files
from mnist_lit.describe import describe_environment, multiply_adds, parameter_count
from mnist_lit.experiments.recipes import Recipe, run_folder
from mnist_lit.run.lightning_cli import run as run_cli

RESULT = "result.json"


class Run(NamedTuple):
    """A recipe and a seed to train it with."""

    recipe: Recipe
    seed: int

    def __str__(self) -> str:
        return f"{self.recipe.name}, seed {self.seed}"


class Result(TypedDict):
    """Result of a run, as saved in result.json and results.json."""

    recipe: str  # name of its file, and changed options
    model: str  # class of the backbone
    seed: int
    parameters: int
    multiply_adds: int  # of the backbone, per image
    epochs: int
    train_images: int
    val_accuracy: float  # 0 to 1, after the last epoch
    test_accuracy: float  # 0 to 1, with the weights of the last epoch
    test_images: int
    seconds: float  # wall-clock time of the whole fit
    environment: str


Outcome = Result | UserError
"""Result of a run, or the error that stopped it."""


def load_result(folder: Path, run: Run) -> Result | None:
    """Load the result of a run, if it has finished."""
    path = run_folder(folder, run.recipe.name, run.seed) / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def report_outcome(run: Run, outcome: Outcome, out: Callable[[str], None] = print) -> None:
    """Print the accuracy of a run, or its error to stderr, in one line."""
    if isinstance(outcome, UserError):
        print(f"mnist-lit: error: {run}: {outcome}", file=sys.stderr)
    else:
        out(f"{run}: {100 * outcome['test_accuracy']:.2f} % of the test images")


def train_and_test(folder: Path, run: Run, callbacks: Sequence[Callback] = ()) -> Result:
    """Train and test a run and save its result; if it has finished before, load the result.

    An interrupted run starts again, and gives the same result as an uninterrupted one.

    Raises:
        UserError: The run has failed, for example because its loss diverged.
    """
    own_folder = run_folder(folder, run.recipe.name, run.seed)
    own_folder.mkdir(parents=True, exist_ok=True)
    with files.lock_folder(own_folder):  # a worker may survive its killed comparison and still write here
        if saved := load_result(folder, run):
            return saved
        for path in own_folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        no_summary = "--trainer.enable_model_summary=false"  # the report shows its content
        start = time.perf_counter()
        fit_args = ["fit", no_summary, *run.recipe.args, f"--seed_everything={run.seed}"]
        fit = run_cli(fit_args, own_folder, callbacks=callbacks)
        seconds = time.perf_counter() - start
        checkpoint = own_folder / "checkpoints" / "last.ckpt"
        test_args = ["test", *run.recipe.args, f"--ckpt_path={checkpoint}", "--verbose=false"]
        test = run_cli(test_args, own_folder, callbacks=callbacks)
        result: Result = {
            "recipe": run.recipe.name,
            "model": type(fit.model.backbone).__name__,
            "seed": run.seed,
            "parameters": parameter_count(fit.model),
            "multiply_adds": multiply_adds(fit.model),
            "epochs": fit.trainer.current_epoch,
            "train_images": len(fit.datamodule.splits["train"]),
            "val_accuracy": fit.trainer.callback_metrics["accuracy/val"].item(),
            "test_accuracy": test.trainer.callback_metrics["accuracy/test"].item(),
            "test_images": len(test.datamodule.splits["test"]),
            "seconds": round(seconds, 1),
            "environment": describe_environment(fit.trainer.strategy.root_device),
        }
        files.write_atomically(own_folder / RESULT, (json.dumps(result, indent=2) + "\n").encode())
    return result
