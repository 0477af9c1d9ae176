"""Other ways to train the three networks."""

import copy
import tempfile
import warnings
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from mnist_lit.benchmark.timing import EpochTimer, now
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.batches import DigitDataset
from mnist_lit.preprocess import MEAN, STD


def plain_loop(trainer: Trainer) -> Iterator[None]:
    """Train a copy of a fit's network step by step with the same arithmetic and nothing else: the fit's speed limit."""
    model, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(model, DigitClassifier)
    images, labels = data.splits["train"].images, data.splits["train"].labels
    if images.dtype == torch.uint8:  # else a callback has prepared them
        images = torch.cat([model.preprocess.prepare(batch) for batch in torch.split(images, 100)])
    backbone = copy.deepcopy(model.backbone).train()
    vars(backbone).pop("forward", None)  # of CUDAGraphs: it would run the fit's network, not the copy
    lr, weight_decay, warmup = (model.hparams[name] for name in ("lr", "weight_decay", "warmup"))
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    batches = int(trainer.num_training_batches)
    schedule = OneCycleLR(optimizer, lr, total_steps=1000 * batches, pct_start=warmup)
    while True:
        order = torch.randperm(len(labels), device=labels.device)
        for chosen in torch.split(order, data.batch_size)[:batches]:
            inputs = images.index_select(0, chosen)
            if model.augment is not None:
                inputs = model.augment(inputs)
            loss = F.cross_entropy(backbone((inputs - MEAN) / STD), labels.index_select(0, chosen))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            yield


class PerSampleDataset(Dataset[tuple[Tensor, int]]):
    """Images in memory that PIL and torchvision's transforms convert one by one, as torchvision's MNIST does.

    Args:
        data: Raw images, uint8 (N, 1, 28, 28), and labels.
        augment: Whether to rotate each image by up to 10° and shift it by up to 10 %, as in the published training.
    """

    def __init__(self, data: DigitDataset, augment: bool) -> None:
        self.images, self.labels = data.images.squeeze(1).cpu().numpy(), data.labels.tolist()
        affine = [transforms.RandomAffine(10, (0.1, 0.1))] if augment else []
        self.transform = transforms.Compose([*affine, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def published_network(widths: tuple[int, int], dropout: tuple[float, float]) -> nn.Sequential:
    """The network of the published code, for the channels of its convolutions and the dropout after each of them."""
    network = nn.Sequential()
    for channels_in, channels_out, probability in zip((1, widths[0]), widths, dropout, strict=True):
        convolution = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        network.extend([convolution, nn.BatchNorm2d(channels_out), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(probability)])
    return network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[1], 10)])


class TutorialModule(LightningModule):
    """A network as Lightning's tutorials train it: loss and accuracy are logged in each step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_accuracy", (logits.argmax(dim=1) == labels).float().mean(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def tutorial_speed(data: DigitDataset, widths: tuple[int, int], batch_size: int, batches: int) -> float:
    """Images per second of Lightning with its defaults and a loader that reads image by image."""
    timer = EpochTimer()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        trainer = Trainer(
            accelerator=data.images.device.type,
            devices=1,
            max_epochs=2,  # the first one is a warm-up
            limit_train_batches=batches,
            default_root_dir=folder,
            callbacks=[timer],
            enable_model_summary=False,
        )
        loader = DataLoader(PerSampleDataset(data, augment=False), batch_size, shuffle=True)
        trainer.fit(TutorialModule(published_network(widths, dropout=(0.0, 0.0))), loader)
    return int(trainer.num_training_batches) * batch_size / timer.epochs[1]["fit"]


def published_speed(data: DigitDataset, widths: tuple[int, int], batches: int, warm_up: int = 10) -> float:
    """Images per second of the published training: a plain loop, batches of 32, each image augmented by itself."""
    dataset, device = PerSampleDataset(data, augment=True), data.images.device
    network = published_network(widths, dropout=(0.1, 0.2)).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    sampler = RandomSampler(dataset, num_samples=32 * (warm_up + batches))
    for step, (images, labels) in enumerate(DataLoader(dataset, 32, sampler=sampler)):
        if step == warm_up:
            start = now()
        optimizer.zero_grad()
        F.cross_entropy(network(images.to(device)), labels.to(device)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return batches * 32 / (now() - start)
