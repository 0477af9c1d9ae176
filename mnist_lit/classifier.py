"""The LightningModule: preprocessing, augmentation and a backbone, trained with cross-entropy and AdamW."""

import warnings
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jsonargparse.typing import NonNegativeFloat, OpenUnitInterval, PositiveFloat, PositiveInt
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from mnist_lit import UserError
from mnist_lit.inputs import ImageCheck, ignore_compilation
from mnist_lit.metrics import BufferedMetrics, StageMetrics
from mnist_lit.preprocess import Preprocess

Batch = tuple[Tensor, Tensor]
"""Images (N, 1, 28, 28) with pixels 0..255, uint8 or float, and labels, int64 (N,)."""


class PreparedBatch(NamedTuple):
    """A batch whose images `Preprocess.prepare` has prepared before training."""

    images: Tensor  # float (N, 1, image_size, image_size)
    labels: Tensor


class DigitClassifier(LightningModule):
    """Classify digits: preprocess raw pixels, augment them in training, and apply a backbone.

    A checkpoint holds all of it, so its accuracy cannot depend on how somebody else prepares the images.

    Args:
        backbone: The network, float images (N, 1, image_size, image_size) to logits (N, 10): any nn.Module.
        augment: Random distortion of the training images, after resizing and before normalization, float 0..1
            (N, 1, image_size, image_size) to the same: any nn.Module.
        image_size: Height and width in pixels of the backbone's input, 8 or more.
        contrast: Divide each image by its brightest pixel.
        threshold: Soft threshold that removes noise, as a fraction of white from 0 to below 1.
        deskew: Shear each digit upright by its moments.
        center: Move each digit's center of mass to the middle of the image.
        rescale: Scale each digit halfway to a common width and height, measured by the spread of its ink.
        square_ink: Weigh each pixel by the square of its ink in these moments, so that gray noise hardly counts.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay of AdamW; 0 makes it Adam.
        schedule: "one_cycle" warms up and anneals over all steps; "plateau" halves the learning rate after each
            epoch without a better validation accuracy.
        warmup: Fraction of the steps in which "one_cycle" rises to its peak, above 0 and below 1.

    Raises:
        UserError: The backbone is missing, the image size below 8, or the threshold out of range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        augment: nn.Module | None = None,
        image_size: PositiveInt = 28,
        contrast: bool = False,
        threshold: NonNegativeFloat = 0.0,
        deskew: bool = False,
        center: bool = False,
        rescale: bool = False,
        square_ink: bool = False,
        lr: PositiveFloat = 0.02,
        weight_decay: NonNegativeFloat = 0.01,
        schedule: Literal["one_cycle", "plateau"] = "one_cycle",
        warmup: OpenUnitInterval = 0.3,
    ) -> None:
        super().__init__()
        if not isinstance(backbone, nn.Module):
            raise UserError(
                f"DigitClassifier needs a network, such as backbone=DS_CNN_V2(), not {backbone}. The checkpoint of a "
                "classifier that was built in Python does not name it: load_from_checkpoint(path, backbone=...)."
            )
        with warnings.catch_warnings(action="ignore"):  # about modules among the hyperparameters
            self.save_hyperparameters(logger=False)
        # LightningCLI stores modules by class path, which can be saved; Python code passes instances, which cannot
        self.hparams.update({name: None for name, value in self.hparams.items() if isinstance(value, nn.Module)})
        self.register_load_state_dict_pre_hook(ignore_compilation)  # type: ignore[no-untyped-call]
        self.check_images = ImageCheck()
        self.preprocess = Preprocess(image_size, contrast, threshold, deskew, center, rescale, square_ink)
        self.augment = augment
        self.backbone = backbone
        self.train_metrics = BufferedMetrics("train")
        self.val_metrics = StageMetrics("val")
        self.test_metrics = StageMetrics("test", per_digit=True)
        self.example_input_array = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)  # for the model summary

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, 10) of images (N, 1, 28, 28) with pixels 0..255, uint8 or float."""
        self.check_images(images)
        logits: Tensor = self.backbone(self.preprocess(images))
        return logits

    def training_step(self, batch: Batch | PreparedBatch, batch_idx: int) -> Tensor:
        images, labels = batch
        if not isinstance(batch, PreparedBatch):
            self.check_images(images)
            images = self.preprocess.prepare(images)
        if self.augment is not None:
            images = self.augment(images)
        logits = self.backbone(self.preprocess.normalize(images))
        self.train_metrics.update(logits, labels)
        return F.cross_entropy(logits, labels)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        self.val_metrics.update(self(images), labels)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        logits: Tensor = self(images)
        self.test_metrics.update(logits, labels)
        return logits  # for callbacks that draw them

    def predict_step(self, batch: Batch | Tensor, batch_idx: int) -> Tensor:
        """Probabilities (N, 10) of a batch, with or without labels."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        probabilities: Tensor = self(images).softmax(dim=1)
        return probabilities

    def on_train_epoch_start(self) -> None:
        self.train_metrics.reset()

    def on_validation_epoch_start(self) -> None:
        self.val_metrics.reset()

    def on_test_epoch_start(self) -> None:
        self.test_metrics.reset()

    def on_train_epoch_end(self) -> None:
        self._log(self.train_metrics)

    def on_validation_epoch_end(self) -> None:
        self._log(self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self._log(self.test_metrics)

    def _log(self, metrics: StageMetrics) -> None:
        # once per epoch: `self.log` in each step costs four times as much as `update` in each step
        for name, value in metrics.compute().items():
            self.log(name, value, prog_bar=name.startswith("accuracy"))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with OneCycleLR (Smith & Topin, Super-Convergence, 2018) or ReduceLROnPlateau."""
        lr, weight_decay = self.hparams["lr"], self.hparams["weight_decay"]
        # Lightning (2.6.6) cannot clip the gradients of a fused optimizer in mixed precision
        fused = not (self.trainer.gradient_clip_val and self.trainer.precision.endswith("mixed"))
        optimizer = torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=weight_decay, fused=fused)
        if self.hparams["schedule"] == "plateau":
            plateau = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "accuracy/val"}}
        steps = int(self.trainer.estimated_stepping_batches)
        one_cycle = OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=self.hparams["warmup"])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": one_cycle, "interval": "step"}}
