"""The LightningModule: everything between a batch of raw pixels and a digit."""

import inspect
import io
import math
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info  # type: ignore[attr-defined]
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torchmetrics import MetricCollection

from mnist_lit import UserError
from mnist_lit.checkpoints.io import load, settings
from mnist_lit.checkpoints.trust import limited
from mnist_lit.data.batches import Batch
from mnist_lit.data.datamodule import EVAL_BATCH_SIZE, MNISTDataModule
from mnist_lit.metrics import Metrics, measure
from mnist_lit.preprocess import Preprocess

EXAMPLE = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
"""A batch of one blank image."""


MEASURED_AT_ONCE = 100
"""Training steps whose outputs are measured together: one by one it costs a twentieth of a step; kept for the whole of
an epoch they lie strewn over the memory, so that little of what is free between them can be used."""


SCALED_FROM = 128
"""Images behind a step that a learning rate which is scaled is given for."""


class DigitClassifier(LightningModule):
    """Reads digits: preprocessing (with augmentation in training) and a backbone; cross-entropy, AdamW, OneCycle.

    Args:
        backbone: The network, float images (N, 1, image_size, image_size) to logits (N, 10): any nn.Module.
        augment: Random distortion of a training batch, straightened and resized but not yet normalised, float 0..1
            (N, 1, image_size, image_size) to the same: any nn.Module.
        image_size: Height and width in pixels that digits are resized to before the backbone, 8 or more.
        deskew: Shear each digit upright by its moments.
        center: Move each digit's centre of mass to the middle of the image.
        rescale: Bring the standard deviations of each digit's ink in x and in y half the way to a common one.
        lr: Learning rate at the peak of the schedule, above 0.
        weight_decay: AdamW's decoupled weight decay, 0 or more: the share of itself that a weight loses in a step is
            this times the learning rate; with 0 it is Adam.
        schedule: "one_cycle", which ends with the last step, or "plateau", which halves the learning rate after each
            epoch that does not raise the validation accuracy.
        warmup: Share of the training steps in which "one_cycle" rises to its peak, from 0 to below 1.
        scale_lr: Take `lr` as that for steps of 128 images, and multiply it by the square root of how many times as
            many there are behind a step, of all processes and batches added up (the rule for Adam: Malladi et al., On
            the SDEs and Scaling Rules for Adaptive Gradient Algorithms, 2022).

    Raises:
        UserError: A number is out of its bounds.
    """

    def __init__(
        self,
        backbone: nn.Module,
        augment: nn.Module | None = None,
        image_size: int = 28,
        deskew: bool = False,
        center: bool = False,
        rescale: bool = False,
        lr: float = 0.02,
        weight_decay: float = 0.01,
        schedule: Literal["one_cycle", "plateau"] = "one_cycle",
        warmup: float = 0.3,
        scale_lr: bool = False,
    ) -> None:
        super().__init__()
        for name, value, good, bounds in (
            ("image_size", image_size, image_size >= 8, "8 or more"),
            ("lr", lr, 0 < lr < math.inf, "more than 0"),
            ("weight_decay", weight_decay, 0 <= weight_decay < math.inf, "0 or more"),
            ("warmup", warmup, 0 <= warmup < 1, "from 0 to below 1"),
        ):
            if not good:
                raise UserError(f"--model.{name} must be {bounds}, not {value}.")
        with warnings.catch_warnings(action="ignore"):  # of modules among the hyper-parameters: dropped right below
            self.save_hyperparameters(logger=False)
        for name in ("backbone", "augment"):
            if isinstance(self.hparams[name], nn.Module):  # built in Python, not from a configuration
                del self.hparams[name]
        self.backbone = backbone
        self.augment = augment
        self.preprocess = Preprocess(image_size, deskew, center, rescale)
        self.lr = lr
        self.weight_decay = weight_decay
        self.schedule = schedule
        self.warmup = warmup
        self.scale_lr = scale_lr
        self.example_input_array = EXAMPLE
        self.is_prepared = False
        """Whether the training batches come straightened and resized."""
        self.metrics = Metrics()
        self.outputs: list[tuple[Tensor, Tensor]] = []
        """Logits (N, 10) and labels (N,) of training batches that are not measured yet."""
        self.loaded_steps: int | None = None
        """Training steps behind the weights of a loaded checkpoint."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set Lightning's note of the running hook, 44 times a step, past torch's search among weights and modules."""
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def parameter_count(self) -> int:
        """How many numbers are trained."""
        return sum(weights.numel() for weights in self.parameters() if weights.requires_grad)

    @property
    def last_step(self) -> int:
        """The training step that the weights come from, counted from 0, as Lightning logs an epoch's figures."""
        return max((self.global_step if self.loaded_steps is None else self.loaded_steps) - 1, 0)

    def setup(self, stage: str) -> None:
        """Prepare the training images once, as each epoch would do again."""
        self.metrics.setup(self.trainer.strategy.root_device)
        self.is_prepared = False
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, MNISTDataModule):
            train = data.splits["train"]
            prepare = self.preprocess.to(train.images.device).prepare
            train.prepared = torch.cat([prepare(images) for images in torch.split(train.images, EVAL_BATCH_SIZE)])
            self.is_prepared = True

    def teardown(self, stage: str) -> None:
        """Leave the data as they were: another network prepares them otherwise."""
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and isinstance(data, MNISTDataModule):
            data.splits["train"].prepared = None
        self.is_prepared = False

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of raw pixels 0..255 (N, 1, 28, 28), uint8 or float."""
        logits: Tensor = self.backbone(self.preprocess(images))
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean cross-entropy of a batch, augmented."""
        images, labels = batch
        prepared = images if self.is_prepared else self.preprocess.prepare(images)
        logits = self.backbone(self.preprocess.normalise(self.augment(prepared) if self.augment else prepared))
        self.outputs.append((logits.detach().float(), labels))
        if len(self.outputs) == MEASURED_AT_ONCE:
            self._measure_outputs()
        return F.cross_entropy(logits, labels)

    def _measure_outputs(self) -> None:
        if self.outputs:
            logits, labels = (torch.cat(batches) for batches in zip(*self.outputs, strict=True))
            measure(self.metrics.fit, logits, labels)
            self.outputs.clear()

    def on_train_epoch_start(self) -> None:
        """Forget an epoch that was broken off."""
        self.outputs.clear()
        self.metrics.fit.reset()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure a batch of the validation split, or (second loader) of the watched test set."""
        images, labels = batch
        measure(self.metrics.validate if dataloader_idx == 0 else self.metrics.watch, self(images), labels)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The logits (N, 10) of a batch of the test set, measured, digit by digit too."""
        images, labels = batch
        logits: Tensor = self(images)
        measure(self.metrics.test, logits, labels)
        self.metrics.confusion.update(logits, labels)
        return logits

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Probabilities (N, 10) of a batch."""
        probabilities: Tensor = self(batch[0]).softmax(dim=1)
        return probabilities

    def on_train_epoch_end(self) -> None:
        """Measure the epoch's steps, as the weights moved, and log it; step a schedule that goes by epochs."""
        self._measure_outputs()
        if self.logger:  # before the checkpoint, where Lightning (2.6.6) logs after it: a killed run may lack the point
            self.logger.log_metrics(self.metrics.fit.compute(), step=self.global_step - 1)
            self.logger.save()
        self._log(self.metrics.fit, logger=False)
        schedule, accuracy = self.lr_schedulers(), self.trainer.callback_metrics.get("val/accuracy")
        if isinstance(schedule, ReduceLROnPlateau) and accuracy is not None:
            schedule.step(accuracy)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step after a training step; after an epoch, Lightning's (2.6.6) call comes after the checkpoint: too late."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def on_validation_epoch_end(self) -> None:
        """Log the validation figures; the watched test set's go to the logger alone, where nothing can monitor them."""
        self._log(self.metrics.validate)
        if self.trainer.num_val_batches[1:]:
            watched = self.metrics.watch.compute()
            self.metrics.watch.reset()
            if self.logger and not self.trainer.sanity_checking:
                self.logger.log_metrics(watched, step=self.global_step - 1)  # Lightning's for the other curves

    def on_test_epoch_start(self) -> None:
        """Begin to count anew: only metrics that are logged are reset by Lightning."""
        self.metrics.confusion.reset()

    def on_test_epoch_end(self) -> None:
        """Log the test figures, digit by digit too, at the training step of the weights."""
        self._log(self.metrics.test)
        counts = self.metrics.confusion.compute()  # (10, 10): true digit, digit read
        recalls = counts.diag() / counts.sum(dim=1)
        self.log_dict({f"test/digit_{digit}_accuracy": recall for digit, recall in enumerate(recalls)})
        self.log("step", float(self.last_step))  # which Lightning takes for the x axis, instead of 0

    def _log(self, metrics: MetricCollection, logger: bool = True) -> None:
        # updated in the steps and logged once at the epoch's end: logging in a step costs four times as much
        for tag, metric in metrics.items():
            self.log(str(tag), metric, prog_bar=str(tag).endswith("accuracy"), logger=logger)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, with OneCycle over all steps (Smith & Topin, Super-Convergence, 2018) or ReduceLROnPlateau."""
        lr = self.lr
        if self.scale_lr:
            batch_size = getattr(self.trainer.datamodule, "batch_size", SCALED_FROM)  # type: ignore[attr-defined]
            images = batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
            lr *= math.sqrt(images / SCALED_FROM)
            rank_zero_info(
                f"Learning rate {lr:.3g}: {self.lr} times the square root of {images} / {SCALED_FROM} images"
            )
        optimizer = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=self.weight_decay, fused=True)
        if self.schedule == "plateau":
            plateau = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/accuracy"}}
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise UserError("The learning-rate schedule needs an end: give --trainer.max_epochs or max_steps.")
        one_cycle = OneCycleLR(optimizer, max_lr=lr, total_steps=int(steps), pct_start=self.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": one_cycle, "interval": "step"}}

    def on_train_start(self) -> None:
        """Refuse to go on with a resumed run for another number of steps than its schedule was made for.

        Raises:
            UserError: Other steps were asked for than the schedule in the checkpoint has.
        """
        steps, planned = self.trainer.estimated_stepping_batches, getattr(self.lr_schedulers(), "total_steps", None)
        if planned not in (None, steps):
            raise UserError(
                f"The resumed run's learning rates were planned for {planned} steps, and this makes {steps}: give the "
                "same --trainer.max_epochs, --trainer.devices and data as when it began, or start anew without "
                "--ckpt_path."
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the checkpoint's training steps, and refuse the weights of another network.

        Raises:
            UserError: The checkpoint's weights don't fit this network.
        """
        self.loaded_steps = checkpoint["global_step"]
        theirs = {name: tuple(weights.shape) for name, weights in checkpoint["state_dict"].items()}
        ours = {name: tuple(weights.shape) for name, weights in self.state_dict().items()}
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise UserError(
                    f"The checkpoint holds another network: {name} is {theirs.get(name, 'missing')} there and "
                    f"{ours.get(name, 'missing')} in {type(self.backbone).__name__}."
                )

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, *, trust: Collection[str] = (), **arguments: Any
    ) -> "DigitClassifier":
        """The classifier of a checkpoint; Lightning's (2.6.6) would unpickle whatever an URL leads to.

        Args:
            checkpoint_path: Its file, .ckpt or .safetensors.
            trust: Packages or modules whose classes it may name, beside this project's and torch.nn's.
            **arguments: Lightning's, and those of the class that are to be others than the checkpoint's.

        Raises:
            UserError: It is no checkpoint, is altered, names what is not trusted, or does not fit its classes.
        """
        checkpoint = load(checkpoint_path)
        settings(checkpoint, checkpoint_path, trust)
        read = io.BytesIO()  # the very bytes that were looked at
        torch.save(checkpoint, read)
        read.seek(0)
        try:
            with limited(trust):
                return super().load_from_checkpoint(read, weights_only=True, **arguments)
        except UserError:
            raise
        except Exception as error:  # jsonargparse, Lightning and any class raise whatever the settings lead them to
            raise UserError(f"{checkpoint_path} cannot be built again: {' '.join(str(error).split())}") from error


# Lightning (2.6.6) asks at each step which arguments it takes, and Python would find them out anew
DigitClassifier.training_step.__signature__ = inspect.signature(DigitClassifier.training_step)  # type: ignore[attr-defined]


def load_classifier(path: Path, trust: Collection[str] = ()) -> tuple[DigitClassifier, dict[str, Any]]:
    """The classifier of a checkpoint, on the CPU and in evaluation mode, and what its data module was given.

    Args:
        path: Its file.
        trust: As `DigitClassifier.load_from_checkpoint` takes it.

    Raises:
        UserError: It is no checkpoint, or one that does not say which network it holds.
    """
    checkpoint = load(path)
    if "backbone" not in checkpoint.get("hyper_parameters", {}):
        raise UserError(f"{path} does not say which network it holds: it was not saved by mnist-lit fit.")
    model = DigitClassifier.load_from_checkpoint(path, trust=trust, map_location="cpu").eval()
    return model, checkpoint.get("datamodule_hyper_parameters", {})
