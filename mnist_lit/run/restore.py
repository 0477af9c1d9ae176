"""Build the classifier of a checkpoint."""

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mnist_lit import UserError
from mnist_lit.checkpoints.io import load, settings
from mnist_lit.checkpoints.trust import refusal
from mnist_lit.classifier import DigitClassifier
from mnist_lit.inputs import plain_name
from mnist_lit.run.options import DENIED
from mnist_lit.run.workarounds import limit_imports


def load_classifier(path: str | Path, trust: Collection[str] = ()) -> tuple[DigitClassifier, dict[str, Any]]:
    """Load a classifier from a checkpoint that may come from a stranger: none of its content is run.

    Args:
        path: The checkpoint, .ckpt or .safetensors.
        trust: Packages or modules whose classes it may name, in addition to this project's and torch.nn's.

    Returns:
        The classifier on the CPU in evaluation mode, and the settings of the data module that it was trained with.

    Raises:
        UserError: The file is not a checkpoint, is damaged, names a class that is not trusted, or does not fit it.
    """
    checkpoint = load(path)
    given = settings(checkpoint)
    if not given["model"].get("backbone"):
        raise UserError(
            f"{path} does not name its network, as it was not saved by mnist-lit fit: load it in Python, with "
            "DigitClassifier.load_from_checkpoint(path, backbone=...)."
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DigitClassifier, "model")
    with limit_imports(trust), report_misfit(path, checkpoint):
        model: DigitClassifier = parser.instantiate(parser.parse_object({"model": given["model"]})).model
    check_weights(model, checkpoint)
    with report_misfit(path, checkpoint):
        model.load_state_dict(checkpoint["state_dict"])
        _check_output(model.eval())
    return model, given["data"]


@contextlib.contextmanager
def report_misfit(
    path: str | Path, checkpoint: dict[str, Any], passed: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Limit what classes do that a checkpoint names, and report in one line that they do not fit it.

    Args:
        path: The checkpoint.
        checkpoint: Its content.
        passed: Errors that are raised as they are.

    Raises:
        UserError: A class has raised another error.
    """
    try:
        with LimitedMemory(checkpoint):
            yield
    except passed:
        raise
    except Exception as error:  # any class may raise any error for the arguments in the file
        denied = DENIED.search(str(error))
        if denied:
            raise UserError(refusal(path, denied[1])) from error
        raise UserError(f"{path} does not fit its classes: {' '.join(str(error).split())}") from error


class LimitedMemory(TorchFunctionMode):
    """Stop classes from a file that need far more memory or steps than its weights suggest: a number may be huge."""

    def __init__(self, checkpoint: dict[str, Any]) -> None:
        super().__init__()
        # each initial value is counted several times
        self.bytes_left = 2**29 + 20 * sum(weights.nbytes for weights in checkpoint["state_dict"].values())
        self.calls_left = 2_000 + 100 * len(checkpoint["state_dict"])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls_left -= 1
        self.bytes_left -= result.nbytes if isinstance(result, Tensor) else 0
        if min(self.calls_left, self.bytes_left) < 0:
            raise MemoryError("the network is much larger than its weights")
        return result


@torch.inference_mode()
def _check_output(model: DigitClassifier) -> None:
    """Check that a classifier gives ten logits for an image; whatever its network raises is raised."""
    size = model.hparams["image_size"]
    on_meta = {name: weights.to("meta") for name, weights in model.backbone.state_dict().items()}
    try:  # computes sizes without allocating them
        torch.func.functional_call(model.backbone, on_meta, torch.zeros(1, 1, size, size, device="meta"))
    except MemoryError:
        raise
    except Exception:  # not every network can
        pass
    logits = model(torch.zeros(1, 1, 28, 28, dtype=torch.uint8))
    if not isinstance(logits, Tensor) or logits.shape != (1, 10):
        raise ValueError(f"{type(model.backbone).__name__} does not give ten logits per image")


def check_weights(model: DigitClassifier, checkpoint: dict[str, Any]) -> None:
    """Compare the names and shapes of a checkpoint's weights with those of a classifier.

    Raises:
        UserError: They differ.
    """
    theirs, ours = (
        {plain_name(name): tuple(weights.shape) for name, weights in state.items()}
        for state in (checkpoint["state_dict"], model.state_dict())
    )
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            raise UserError(
                f"The checkpoint holds another network: {name} has the shape {theirs.get(name, 'missing')}, and "
                f"{ours.get(name, 'missing')} in {type(model.backbone).__name__}."
            )
