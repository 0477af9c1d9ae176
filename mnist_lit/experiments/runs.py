"""One run of a comparison: train a recipe, measure it on the test set or on a held-out fold, and save the result."""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, Trainer

from mnist_lit import UserError, files
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.batches import DigitDataset
from mnist_lit.data.datamodule import EVAL_BATCH_SIZE
from mnist_lit.describe import describe_environment, multiply_adds, parameter_count
from mnist_lit.experiments.recipes import Recipe, run_folder
from mnist_lit.run import overhead
from mnist_lit.run.lightning_cli import run as run_cli

RESULT = "result.json"


class Run(NamedTuple):
    """A recipe, a seed to train it with, and the number of the fold to measure it on, or None for the test set."""

    recipe: Recipe
    seed: int
    fold: int | None = None

    def __str__(self) -> str:
        fold = "" if self.fold is None else f", fold {self.fold}"
        return f"{self.recipe.name}, seed {self.seed}{fold}"

    def folder(self, comparison: Path) -> Path:
        """Its folder within the folder of its comparison."""
        folder = run_folder(comparison, self.recipe.name, self.seed)
        return folder if self.fold is None else folder / f"fold_{self.fold}"

    @property
    def options(self) -> dict[str, Any]:
        """All options of `mnist-lit fit`."""
        data = self.recipe.options["data"] | ({} if self.fold is None else {"fold": self.fold})
        return self.recipe.options | {"seed_everything": self.seed, "data": data}

    @property
    def args(self) -> list[str]:
        """Arguments of `mnist-lit fit`."""
        fold = [] if self.fold is None else [f"--data.fold={self.fold}"]
        return [*self.recipe.args, f"--seed_everything={self.seed}", *fold]


class Trained(NamedTuple):
    """A trained network, and how it was trained."""

    trainer: Trainer
    model: DigitClassifier
    train_images: int
    val: DigitDataset
    val_accuracy: float
    """0 to 1, after the last epoch."""
    seconds: float


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
    seconds: float  # wall-clock time of the whole fit; with --together, divided by the number of networks
    environment: str
    # measured on the test set, with the weights of the last epoch
    test_accuracy: NotRequired[float]  # 0 to 1
    test_images: NotRequired[int]
    # or on a fold, which is the validation split
    fold: NotRequired[int]
    val_images: NotRequired[int]
    val_cross_entropy: NotRequired[float]
    wrong: NotRequired[list[int]]  # indices of the misclassified images within the fold


Outcome = Result | UserError
"""Result of a run, or the error that stopped it."""


def load_result(folder: Path, run: Run) -> Result | None:
    """Load the result of a run, if it has finished."""
    path = run.folder(folder) / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def report_outcome(run: Run, outcome: Outcome, out: Callable[[str], None] = print) -> None:
    """Print the accuracy of a run, or its error to stderr, in one line."""
    if isinstance(outcome, UserError):
        print(f"mnist-lit: error: {run}: {outcome}", file=sys.stderr)
    elif run.fold is not None:
        out(f"{run}: {100 * outcome['val_accuracy']:.2f} % of the held-out images")
    else:
        out(f"{run}: {100 * outcome['test_accuracy']:.2f} % of the test images")


def train_and_measure(folder: Path, run: Run, callbacks: Sequence[Callback] = ()) -> Result:
    """Train and measure a run and save its result; if it has finished before, load the result.

    An interrupted run starts again, and gives the same result as an uninterrupted one.

    Raises:
        UserError: The run has failed, for example because its loss diverged.
    """
    with open_folder(folder, run) as saved:
        if saved:
            return saved
        no_summary = "--trainer.enable_model_summary=false"  # the report shows its content
        start = time.perf_counter()
        fit = run_cli(["fit", no_summary, *run.args], run.folder(folder), callbacks=callbacks)
        seconds = time.perf_counter() - start
        accuracy = fit.trainer.callback_metrics["accuracy/val"].item()
        splits = fit.datamodule.splits
        trained = Trained(fit.trainer, fit.model, len(splits["train"]), splits["val"], accuracy, seconds)
        with overhead.limit_threads(fit.model, fit.datamodule.batch_size):  # as many as in the fit
            return measure(folder, run, trained, callbacks)


@contextlib.contextmanager
def open_folder(folder: Path, run: Run) -> Iterator[Result | None]:
    """Lock the folder of a run, and empty it; if the run has finished before, yield its result instead."""
    own_folder = run.folder(folder)
    own_folder.mkdir(parents=True, exist_ok=True)
    # another comparison may have been resumed, too; a worker may survive its killed comparison and still write here
    with files.lock_folder(own_folder):
        saved = load_result(folder, run)
        if saved is None:
            for path in own_folder.iterdir():
                if path.name != files.LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield saved


def measure(folder: Path, run: Run, trained: Trained, callbacks: Sequence[Callback] = ()) -> Result:
    """Measure a trained network on the test set or on its fold, and save the result."""
    result: Result = {
        "recipe": run.recipe.name,
        "model": type(trained.model.backbone).__name__,
        "seed": run.seed,
        "parameters": parameter_count(trained.model),
        "multiply_adds": multiply_adds(trained.model),
        "epochs": trained.trainer.current_epoch,
        "train_images": trained.train_images,
        "val_accuracy": trained.val_accuracy,
        "seconds": round(trained.seconds, 1),
        "environment": describe_environment(trained.trainer.strategy.root_device),
    }
    if run.fold is None:
        _test(run, run.folder(folder), callbacks, result)
    else:
        _measure_on_fold(trained.model, trained.val, run.fold, result)
    files.write_atomically(run.folder(folder) / RESULT, (json.dumps(result, indent=2) + "\n").encode())
    return result


def _measure_on_fold(model: DigitClassifier, val: DigitDataset, fold: int, result: Result) -> None:
    """Add the measurement of a trained network on the fold that it was not trained on."""
    images, labels = val.images.cpu(), val.labels.cpu()
    model = model.cpu().eval()
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch in torch.split(images, EVAL_BATCH_SIZE)])
    result["fold"] = fold
    result["val_images"] = len(labels)
    result["val_cross_entropy"] = F.cross_entropy(logits, labels).item()
    result["wrong"] = (logits.argmax(dim=1) != labels).nonzero().flatten().tolist()


def _test(run: Run, folder: Path, callbacks: Sequence[Callback], result: Result) -> None:
    """Add the measurement of the last checkpoint on the test set."""
    checkpoint = folder / "checkpoints" / "last.ckpt"
    args = ["test", *run.recipe.args, f"--ckpt_path={checkpoint}", "--verbose=false"]
    test = run_cli(args, folder, callbacks=callbacks)
    result["test_accuracy"] = test.trainer.callback_metrics["accuracy/test"].item()
    result["test_images"] = len(test.datamodule.splits["test"])
