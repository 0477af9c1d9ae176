"""CUDA graphs, with a stand-in for torch's function that captures them, which needs a GPU."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import SMALL, Main
from torch import Tensor, nn

from mnist_lit.callbacks import cuda_graphs
from mnist_lit.callbacks.cuda_graphs import CUDAGraphs
from mnist_lit.run.lightning_cli import DigitCLI, run

OPTIONS = [
    *SMALL,
    "--data.batch_size=60",
    "--model.image_size=16",
    "--model.backbone.dropout=0.1",
]  # 60 + ... + 10 images


class Replay(torch.autograd.Function):
    """Returns memory that the next call overwrites, as the output of a graph."""

    memory = torch.empty(0)

    @staticmethod
    def forward(_: Any, logits: Tensor) -> Tensor:
        Replay.memory = logits.clone() if Replay.memory.shape != logits.shape else Replay.memory.copy_(logits)
        return Replay.memory.detach()

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        return gradient


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the batches that were replayed."""
    replayed: list[tuple[int, ...]] = []

    def make_graphed_callables(module: nn.Module, sample: tuple[Tensor, ...]) -> None:
        run_eagerly: Callable[[Tensor], Tensor] = module.forward
        for _ in range(3):
            run_eagerly(*sample)  # changes BatchNorm's statistics and draws the dropout's random numbers

        def forward(images: Tensor) -> Tensor:
            replayed.append(tuple(images.shape))
            logits: Tensor = Replay.apply(run_eagerly(images))
            return logits

        module.forward = forward

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    monkeypatch.setattr(cuda_graphs, "_problem", lambda *_: None)
    return replayed


def weights(cli: DigitCLI) -> dict[str, Tensor]:
    return copy.deepcopy(cli.model.state_dict())


@pytest.mark.usefixtures("main")
def test_a_fit_with_graphs_equals_one_without(shapes: list[tuple[int, ...]]) -> None:
    plain, graphed = run(["fit", *OPTIONS]), run(["fit", *OPTIONS], callbacks=[CUDAGraphs()])
    assert shapes == 2 * 4 * [(60, 1, 16, 16)]  # not the last batch of an epoch, and no validation
    for name, tensor in weights(plain).items():
        assert torch.equal(tensor, weights(graphed)[name]), name
    for metric in ("accuracy/train", "loss/train", "accuracy/val"):
        assert plain.trainer.callback_metrics[metric] == graphed.trainer.callback_metrics[metric]
    assert "forward" not in vars(graphed.model.backbone)


@pytest.mark.usefixtures("shapes", "main")
def test_a_network_that_cannot_be_captured_trains_without_graphs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(module: nn.Module, sample: tuple[Tensor, ...]) -> None:
        module(*sample)
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fail)
    cli = run(["fit", *OPTIONS], callbacks=[CUDAGraphs()])
    line = "CUDA graphs are not used: DS_CNN_V1 cannot be captured: operation not permitted when stream is capturing."
    assert line in capsys.readouterr().out
    plain = run(["fit", *OPTIONS])
    assert all(torch.equal(tensor, weights(cli)[name]) for name, tensor in weights(plain).items())


def test_without_a_gpu_a_line_says_that_graphs_are_not_used(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit --trainer.callbacks+=mnist_lit.callbacks.cuda_graphs.CUDAGraphs")
    assert capsys.readouterr().out.count("CUDA graphs are not used: the run is not on a GPU.") == 1
    assert Path("lightning_logs/ds_cnn_v1/version_0/checkpoints/last.ckpt").exists()
