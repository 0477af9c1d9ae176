"""A run whose loss or weights are no longer finite stops before it saves them."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.commands import SMALL, Main, error_line

from mnist_lit.checkpoints.io import load
from mnist_lit.run.lightning_cli import run


@pytest.mark.parametrize("change", ["--model.lr=1e30", "--trainer.gradient_clip_val=1e-45 --model.lr=1e38"])
def test_diverging_run_stops_at_once(
    change: str, main: Main, capsys: pytest.CaptureFixture[str], report: Callable[[str], None]
) -> None:
    message = error_line(main, f"fit {change} --trainer.max_epochs=9", capsys)
    assert re.search(r"at step \d+ \(epoch 0\).*learning rate.*--model\.lr", message)
    for path in Path().rglob("*.ckpt"):
        assert all(weights.isfinite().all() for weights in load(path)["state_dict"].values())
    report(message)


@pytest.mark.usefixtures("main")
def test_processes_compare_their_losses_at_some_steps_only() -> None:
    compared: list[bool] = []

    def reduce_boolean_decision(decision: bool) -> bool:
        compared.append(decision)
        return decision

    fit = run(["fit", *SMALL, "--trainer.fast_dev_run=true"])
    callbacks: Any = {type(callback).__name__: callback for callback in fit.trainer.callbacks}  # type: ignore[attr-defined]
    stop = callbacks["DivergenceStop"]
    strategy = SimpleNamespace(reduce_boolean_decision=reduce_boolean_decision)
    trainer: Any = SimpleNamespace(world_size=2, strategy=strategy)  # of a run in two processes
    stop.on_train_start(trainer, fit.model)
    for batch_idx in range(100):
        stop.on_train_batch_end(trainer, fit.model, {"loss": torch.tensor(1.0)}, None, batch_idx)
    assert compared[0]
    assert len(compared) <= 10
