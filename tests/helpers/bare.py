"""Fit and test with nothing but Lightning's Trainer, as in a script or a notebook."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    """A Trainer that neither prints nor saves, unless the options ask for it."""
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    return Trainer(**(quiet | {"accelerator": "cpu", "max_epochs": 1, "callbacks": list(callbacks)} | options))


def fit(model: LightningModule, *data: Any, **options: Any) -> Trainer:
    """Fit a model to a data module, or to data loaders, and return the Trainer."""
    fitted = trainer(**options)
    fitted.fit(model, *data)
    return fitted


def loader(images: Tensor, labels: Tensor, batch_size: int = 32) -> DataLoader[Any]:
    """A DataLoader of torch's own."""
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size)
