"""Build the classifier of a checkpoint."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

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
    with limit_imports(trust):
        try:
            model = parser.instantiate(parser.parse_object({"model": given["model"]})).model
        except Exception as error:  # any class may raise any error for the arguments in the file
            denied = DENIED.search(str(error))
            if denied:
                raise UserError(refusal(path, denied[1])) from error
            raise UserError(f"{path} does not fit its classes: {' '.join(str(error).split())}") from error
    assert isinstance(model, DigitClassifier)
    check_weights(model, checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval(), given["data"]


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
