"""Run command lines in this process, and read what they print."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

Main = Callable[[str], None]
"""Type of the fixture `main`."""

CONFIGS = Path(__file__).parents[2] / "configs"
"""Folder of the recipes."""

REFERENCE = CONFIGS.parent / "lightning_logs" / "reference"
"""Folder of the reference runs."""

TRAIN, TEST = 300, 100
"""Images of the tiny MNIST."""

SMALL = ["--data.val_size=50", "--data.batch_size=50", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
SMALL += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
"""Options for a run on the tiny MNIST: 2 epochs of 5 steps."""

WATCH_TEST = "--watch_test=true"
"""The option that draws the test set's curves while training."""

RUN = Path("lightning_logs/ds_cnn_v1/version_0")
"""Folder of the first run, in the working folder."""

LAST = RUN / "checkpoints/last.ckpt"


def names(folder: Path | str = ".") -> list[str]:
    """The sorted names of the files in a folder."""
    return sorted(path.name for path in Path(folder).iterdir())


def weights(checkpoint: Path | str) -> dict[str, Tensor]:
    """The weights in a checkpoint, read by torch alone."""
    state: dict[str, Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


def equal_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def accuracy(printed: str) -> float:
    """The accuracy, from 0 to 1, that test or validate prints."""
    found = re.search(r"accuracy/(?:test|val)\W+([\d.]+) %", printed)
    assert found, printed
    return float(found[1]) / 100


def error_line(main: Main, line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command line that must fail, and return its error message, which must be one line."""
    with pytest.raises(SystemExit) as end:
        main(line)
    assert end.value.code not in (0, None)
    message = str(end.value.code) if isinstance(end.value.code, str) else capsys.readouterr().err.strip()
    assert message.startswith("mnist-lit: error: ")
    assert "\n" not in message
    return message
