"""The real command line in this process, and how what it prints is read."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

Main = Callable[[str], None]

TRAIN, TEST = 300, 100
"""Images of the tiny MNIST."""

SMALL = ["--data.val_size=50", "--data.batch_size=50", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
SMALL += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def weights(checkpoint: Path | str) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def accuracy(printed: str) -> float:
    """What a table printed by test or validate says."""
    found = re.search(r"(?:test|val)/accuracy\W+([\d.]+)", printed)
    assert found, printed
    return float(found[1])


def error(main: Main, line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a mistaken command line is answered with."""
    with pytest.raises(SystemExit) as end:
        main(line)
    assert end.value.code not in (0, None)
    told = str(end.value.code) if isinstance(end.value.code, str) else capsys.readouterr().err.strip()
    assert told.startswith("mnist-lit: error: ")
    assert "\n" not in told
    return told
