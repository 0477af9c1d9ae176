"""Ways to train that the benchmark compares, and the clocks that it reads."""

import copy
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.batches import DigitDataset
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.preprocess import MEAN, STD

Widths = tuple[int, int]
"""Channels of the two convolutions of a network."""


def now() -> float:
    """Seconds on a clock, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


TURN = 40
"""Training steps of the fit and of the plain loop that take turns: a quarter of a second, less than the machine's speed
stays the same."""


class Rounds(Callback):
    """Times the epochs of a fit, and a plain loop that makes as many steps over the same images in turn with it.

    An epoch of the fit is timed from its start to the next one's, without validation and the plain loop: so what a run
    writes at an epoch's end counts.

    Args:
        images: Training images, the first ones repeated as often as it takes; all of them once by default.
        plain: Whether there is a plain loop.
    """

    def __init__(self, images: int | None = None, plain: bool = True) -> None:
        self.images = images
        self.plain = plain
        self.fit_s: list[float] = []
        self.plain_s: list[float] = []
        self.validation_s: list[float] = []
        self.start = self.validation_start = self.validated_s = self.plain_loop_s = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take as many images as are wanted."""
        if self.images is not None:
            splits = _data(trainer).splits
            chosen = torch.arange(self.images) % len(splits["train"])
            splits["train"] = DigitDataset(splits["train"].images[chosen], splits["train"].labels[chosen])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End an epoch and begin the next."""
        if trainer.current_epoch > 0:
            self._end_epoch()
        elif self.plain and isinstance(pl_module, DigitClassifier):
            self.loop = plain_loop(pl_module, _data(trainer), int(trainer.num_training_batches))
        self.start, self.validated_s, self.plain_loop_s = now(), 0.0, 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the plain loop make as many steps, if it is its turn."""
        steps = batch_idx + 1
        if self.plain and (steps % TURN == 0 or steps == trainer.num_training_batches):
            start = now()
            for _ in range((batch_idx % TURN) + 1):
                next(self.loop)
            self.plain_loop_s += now() - start

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the last epoch."""
        self._end_epoch()

    def _end_epoch(self) -> None:
        self.fit_s.append(now() - self.start - self.validated_s - self.plain_loop_s)
        self.validation_s.append(self.validated_s)
        self.plain_s += [self.plain_loop_s] if self.plain else []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self.validation_start = now()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let it go on."""
        self.validated_s += now() - self.validation_start


def plain_loop(model: DigitClassifier, data: MNISTDataModule, batches: int) -> Iterator[None]:
    """Steps of a loop that does the arithmetic of a fit, with its own weights, and nothing else: the limit."""
    train = data.splits["train"]
    images, labels = train.images if train.prepared is None else train.prepared, train.labels
    backbone = copy.deepcopy(model.backbone).train()
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=model.lr, weight_decay=model.weight_decay, fused=True)
    schedule = OneCycleLR(optimizer, model.lr, total_steps=1000 * batches, pct_start=model.warmup)
    while True:
        shuffled = torch.randperm(len(labels), device=labels.device)
        for chosen in torch.split(shuffled, data.batch_size)[:batches]:
            prepared = images.index_select(0, chosen)
            logits = backbone(model.preprocess.normalise(model.augment(prepared) if model.augment else prepared))
            loss = F.cross_entropy(logits, labels.index_select(0, chosen))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            yield


class PerSample(Dataset[tuple[Tensor, int]]):
    """Images from memory, each through PIL and the transforms by itself, as torchvision's MNIST hands them out.

    Args:
        data: The images and labels.
        distort: Whether each is rotated by up to 10° and shifted by up to 10 % first, as in the published training.
    """

    def __init__(self, data: DigitDataset, distort: bool) -> None:
        self.images = data.images.squeeze(1).cpu().numpy()
        self.labels = data.labels.tolist()
        affine = [transforms.RandomAffine(10, (0.1, 0.1))] if distort else []
        self.transform: Callable[[Image.Image], Tensor] = transforms.Compose(
            [*affine, transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class TutorialModule(LightningModule):
    """One of the three networks as tutorials write a LightningModule: loss and accuracy logged in each step."""

    def __init__(self, widths: Widths) -> None:
        super().__init__()
        self.network = published_network(widths, dropout=False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean cross-entropy of a batch."""
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_accuracy", (logits.argmax(dim=1) == labels).float().mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class StepClock(Callback):
    """Seconds from the end of one training step to that of another.

    Args:
        first: The step after which it starts; those before it warm up.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.start = self.end = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """Start, or move the end."""
        if trainer.global_step == self.first:
            self.start = now()
        elif trainer.global_step == trainer.max_steps:
            self.end = now()


WARM_UP = 10
"""Steps that are not timed."""


def tutorial_rate(data: DigitDataset, widths: Widths, batch_size: int, batches: int, folder: str) -> float:
    """Images a second of Lightning as tutorials use it: a loader that hands out sample by sample, and all defaults."""
    clock = StepClock(WARM_UP)
    trainer = Trainer(
        accelerator=data.images.device.type,
        devices=1,
        max_steps=WARM_UP + batches,
        default_root_dir=folder,
        callbacks=[clock],
        enable_model_summary=False,
    )
    with warnings.catch_warnings(action="ignore"):  # a tutorial's user reads them; here they say nothing new
        trainer.fit(TutorialModule(widths), DataLoader(PerSample(data, distort=False), batch_size, shuffle=True))
    return batches * batch_size / (clock.end - clock.start)


def published_network(widths: Widths, dropout: bool = True) -> nn.Sequential:
    """One of the three networks with its layers in the order, and its tensors in the layout, of the published code."""
    width1, width2 = widths
    shares = (0.1, 0.2) if dropout else (0.0, 0.0)
    layers: list[nn.Module] = []
    for inputs, outputs, share in zip((1, width1), (width1, width2), shares, strict=True):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(share)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width2, 10))


def published_rate(data: DigitDataset, widths: Widths, batches: int) -> float:
    """Images a second of the published training: a plain loop, batches of 32, each image distorted by itself."""
    device = data.images.device
    network = published_network(widths).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    loader = DataLoader(PerSample(data, distort=True), 32, shuffle=True)
    epochs = chain.from_iterable(repeat(loader))
    start = 0.0
    for step in range(WARM_UP + batches):
        if step == WARM_UP:
            start = now()
        images, labels = (tensor.to(device) for tensor in next(epochs))
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return batches * 32 / (now() - start)


def _data(trainer: Trainer) -> MNISTDataModule:
    data: LightningDataModule = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, MNISTDataModule)
    return data
