"""How fast `mnist-lit fit` trains, beside a plain PyTorch loop on the same tensors."""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mnist_lit import UserError
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data import MNISTDataModule
from mnist_lit.parser import CommandParser
from mnist_lit.report import describe_environment
from mnist_lit.runner import LOGS, run

DESCRIPTION = """Images a second of `mnist-lit fit` as a user runs it (progress bar, TensorBoard, checkpoints) and of a
hand-written PyTorch loop over the same tensors, with the same network, batch size and optimiser and a one-cycle
schedule.

Both train in turn, round after round, in one process. A round is timed from the start of an epoch to the start of the
next, without validation: so the checkpoints and logs at an epoch's end count. The share of preprocessing, and of
augmentation if there is one, is that of the plain loop's time. The peak memory is that of a `mnist-lit fit` of one
epoch in a process of its own. Prints a table and writes lightning_logs/benchmark/speed.json."""


class EpochTimer(Callback):
    """Seconds of each epoch of a fit, from its start to the next one's, without validation."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.start = self.validation = self.validation_start = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an epoch, and so end the one before."""
        now = _now()
        if trainer.current_epoch > 0:
            self.seconds.append(now - self.start - self.validation)
        self.start, self.validation = now, 0.0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.validation_start = _now()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it go on."""
        self.validation += _now() - self.validation_start


def main(args: list[str]) -> None:
    """Run `mnist-lit benchmark` with its arguments.

    Raises:
        UserError: What was asked for cannot be done.
        SystemExit: The arguments are at fault, or ask for help.
    """
    parser = CommandParser(
        "benchmark",
        usage="[--rounds N] [--batches N] [any option of mnist-lit fit]",
        description=DESCRIPTION,
        epilog="Example: mnist-lit benchmark --config configs/ds_cnn_v2.yaml --data.batch_size 512",
    )
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds, of which the medians count (7)")
    parser.add_argument("--batches", type=int, default=200, metavar="N", help="batches of an epoch (200)")
    options, flags = parser.parse_known_args(args)
    if options.rounds < 2 or options.batches < 2:
        raise UserError("--rounds and --batches must be 2 or more.")
    ours: list[float] = []
    plain: list[float] = []
    shares: list[float] = []
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            fit = run(_fit(folder, 3, options.batches, flags))
        ours.append(_rate(fit.datamodule, options.batches, _timer(fit.trainer).seconds[1]))  # the first warms up
        seconds = _plain_epochs(fit.model, fit.datamodule, options.batches)
        plain.append(_rate(fit.datamodule, options.batches, seconds))
        shares.append(_preprocess_epoch(fit.model, fit.datamodule, options.batches) / seconds)
    result = {
        "environment": describe_environment(fit.trainer.strategy.root_device),
        "model": type(fit.model.backbone).__name__,
        "image_size": fit.model.preprocess.image_size,
        "batch_size": fit.datamodule.batch_size,
        "batches": options.batches,
        "fit_images_per_s": ours,
        "plain_images_per_s": plain,
        "preprocessing_shares": shares,
        "ratios": [a / b for a, b in zip(ours, plain, strict=True)],
        "peak_memory_gb": _peak_memory(flags),
    }
    path = Path(LOGS) / "benchmark" / "speed.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(table(result), f"\n{path}", sep="")


def _fit(folder: str, epochs: int, batches: int | float, flags: list[str]) -> list[str]:
    limits = [f"--trainer.max_epochs={epochs}", f"--trainer.limit_train_batches={batches}"]
    timer = f"--trainer.callbacks+={EpochTimer.__module__}.{EpochTimer.__name__}"
    return ["fit", *flags, *limits, f"--trainer.default_root_dir={folder}", timer]


def _timer(trainer: Trainer) -> EpochTimer:
    return next(callback for callback in trainer.callbacks if isinstance(callback, EpochTimer))  # type: ignore[attr-defined]


def _rate(data: MNISTDataModule, batches: int, seconds: float) -> float:
    return min(batches * data.batch_size, len(data.splits["train"])) / seconds


def _plain_epochs(model: DigitClassifier, data: MNISTDataModule, batches: int) -> float:
    """Seconds of the second of two epochs of a loop that does the arithmetic of a fit and nothing else."""
    train = data.splits["train"]
    images, labels = train.images, train.labels
    model.to(images.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=model.lr, weight_decay=model.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, model.lr, total_steps=2 * batches + 1, pct_start=model.warmup
    )
    for _ in range(2):
        start = _now()
        for chosen in _batches(data, batches):
            logits = model.backbone(model.preprocess(images[chosen], model.augment))
            loss = F.cross_entropy(logits, labels[chosen])
            if train.logits is not None:
                loss = model.distil(loss, logits, train.logits[chosen])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        seconds = _now() - start
    return seconds


@torch.no_grad()
def _preprocess_epoch(model: DigitClassifier, data: MNISTDataModule, batches: int) -> float:
    """Seconds that preprocessing and augmentation take of such an epoch."""
    images = data.splits["train"].images
    start = _now()
    for chosen in _batches(data, batches):
        model.preprocess(images[chosen], model.augment)
    return _now() - start


def _batches(data: MNISTDataModule, batches: int) -> tuple[Tensor, ...]:
    """Indices of the training images, shuffled, a tensor a batch."""
    labels = data.splits["train"].labels
    return torch.split(torch.randperm(len(labels), device=labels.device), data.batch_size)[:batches]


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak_memory(flags: list[str]) -> float:
    """GB of memory that a fit of one whole epoch holds at its peak, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mnist_lit", *_fit(folder, 1, 1.0, flags)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit / 1e9


def table(result: dict[str, Any]) -> str:
    """The benchmark's result as a Markdown table."""

    def spread(values: list[float], form: str) -> str:
        return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"

    rounds, batches = len(result["ratios"]), f"{result['batches']} batches of {result['batch_size']}"
    return f"""
{result["model"]}, {result["image_size"]} px, {batches}: median of {rounds} rounds

| training                | images/s (lowest to highest) |
|-------------------------|------------------------------|
| `mnist-lit fit`         | {spread(result["fit_images_per_s"], ",.0f")} |
| plain PyTorch loop      | {spread(result["plain_images_per_s"], ",.0f")} |
| ratio of a round        | {spread(result["ratios"], ".2f")} |
| preprocessing's share   | {spread([100 * share for share in result["preprocessing_shares"]], ".0f")} % |
| peak memory of a fit    | {result["peak_memory_gb"]:.2f} GB |

{result["environment"]}
"""
