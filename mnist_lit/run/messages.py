"""Print results in words, and the commands that come next: to resume, to test, to show the curves."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from mnist_lit import backbones
from mnist_lit.callbacks.checkpointing import saved_checkpoint
from mnist_lit.callbacks.predictions import PredictionWriter
from mnist_lit.callbacks.record import RunLogger
from mnist_lit.checkpoints.trust import foreign_modules
from mnist_lit.command_parser import command_line
from mnist_lit.data.datamodule import EVAL_BATCH_SIZE
from mnist_lit.signals import Stopped


@contextlib.contextmanager
def report_fit(trainer: Trainer, options: Namespace, logs: Path) -> Iterator[None]:
    """Print what a fit will not save and, when it has ended or was interrupted, its result and what comes next.

    Raises:
        Stopped: A signal has stopped the fit.
    """
    print_unsaved(trainer)
    package, _, network = options.model.backbone.class_path.rpartition(".")
    if not options.config and options.ckpt_path is None and package == backbones.__name__:
        print(f"No recipe: {network} trains with the default of each option that is not given.")
        print("Recipes: --config ds_cnn_v1, ds_cnn_v2 or ds_cnn_v3")
    start = time.monotonic()
    try:
        yield
    except Stopped:
        print_next("fit", trainer, options, logs)
        raise
    print_result(trainer, time.monotonic() - start)
    print_next("test", trainer, options, logs)


def print_result(trainer: Trainer, seconds: float) -> None:
    """Print the result of a fit that took some seconds."""
    network = type(trainer.lightning_module.backbone).__name__
    accuracy = trainer.callback_metrics.get("accuracy/val")
    measured = "" if accuracy is None else f"{100 * accuracy:.2f} % validation accuracy "
    epochs = f"{trainer.current_epoch} epoch{'s' * (trainer.current_epoch != 1)}"
    saved = saved_checkpoint(trainer)
    folder = f"; saved in {saved.parent.parent}" if saved else ""
    print(f"{network}: {measured}after {epochs} in {seconds:.0f} s{folder}")


def print_metrics(trainer: Trainer, stage: str) -> None:
    """Print the metrics of a stage: "val" or "test"."""
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    batches = trainer.num_test_batches if stage == "test" else trainer.num_val_batches
    images = len(trainer.datamodule.splits[stage])  # type: ignore[attr-defined]
    name = {"val": "validation", "test": "test"}[stage]
    is_whole = sum(batches) * EVAL_BATCH_SIZE * trainer.world_size >= images
    count = f" of {images:,} {name} images" if is_whole else ""
    print(f"{'accuracy/' + stage:<16}{100 * metrics[f'accuracy/{stage}']:.2f} %{count}")
    print(f"{'loss/' + stage:<16}{metrics[f'loss/{stage}']:.4f} (cross-entropy)")
    recalls = [f"{digit}: {100 * metrics[key]:.1f} %" for digit in range(10) if (key := f"recall/{digit}") in metrics]
    for title, part in (("recall", recalls[:5]), ("", recalls[5:])):
        if part:
            print(f"{title:<16}{'  '.join(f'{recall:<10}' for recall in part)}".rstrip())


def print_predictions(trainer: Trainer) -> None:
    """Print where the predictions are."""
    for writer in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(writer, PredictionWriter):
            print(f"{writer.count:,} predictions: {writer.path}")


def print_unsaved(trainer: Trainer) -> None:
    """Print what a run will not save."""
    saved = {"curves": trainer.loggers, "checkpoints": trainer.checkpoint_callbacks}
    if not all(saved.values()):
        print(f"This run saves no {' and no '.join(what for what, savers in saved.items() if not savers)}.")


def print_next(command: str, trainer: Trainer, options: Namespace, logs: Path) -> None:
    """Print how to resume a run ("fit"), or how to test it and show its curves ("test")."""
    commands = []
    if saved := saved_checkpoint(trainer):
        on_nodes = " (on each node)" if command == "fit" and trainer.num_nodes > 1 else ""
        commands.append(next_command(command, saved, options) + on_nodes)
    for logger in trainer.loggers:
        if command == "test" and isinstance(logger, TensorBoardLogger):
            folder = logs if isinstance(logger, RunLogger) else logger.root_dir
            commands.append(uv_run(["tensorboard", "--logdir", os.path.relpath(folder)]))
    if commands:
        heading = "Next:" if command == "test" else "Interrupted. To resume from the last checkpoint:"
        print("\n  ".join([heading, *commands]))


def next_command(command: str, checkpoint: Path, options: Namespace) -> str:
    """The command line that continues from a checkpoint of this run.

    Args:
        command: "fit" or "test".
        checkpoint: The checkpoint.
        options: The options of this run.
    """
    program = ["python", "-m", "mnist_lit"] if Path(sys.argv[0]).name == "__main__.py" else ["mnist-lit"]
    words = [*program, command, "--ckpt_path", str(checkpoint)]
    if command != "fit" and options.data.source == "mnist" and options.data.data_dir != "data":
        words += ["--data.data_dir", options.data.data_dir]
    modules = foreign_modules([options.model.as_dict(), options.trainer.as_dict() if command == "fit" else {}])
    modules = {module for module in modules if not module.startswith("lightning.")}
    words += ["--trust", *sorted(modules)] if modules else []
    return uv_run(words)


def uv_run(words: list[str]) -> str:
    """The command line of these words, with the prefix that this program was started with."""
    prefix = ["uv", "run"] if "UV" in os.environ else []  # uv sets UV for its child processes
    return command_line([*prefix, *words])
