"""Checkpoints with extreme content give one line, quickly and without much memory; `tests/test_fuzz.py` found most."""

import json
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import REFERENCE
from torch import nn

from mnist_lit import UserError
from mnist_lit.checkpoints.io import load, split_header
from mnist_lit.checkpoints.publish import pack_safetensors
from mnist_lit.classifier import DigitClassifier
from mnist_lit.run.restore import load_classifier

SMALL = REFERENCE / "ds_cnn_v2" / "checkpoints" / "last.ckpt"


def refused(checkpoint: dict[str, Any], folder: Path) -> str:
    """The line that refuses a checkpoint."""
    path = folder / "a.ckpt"
    torch.save(checkpoint, path)
    with pytest.raises(UserError) as error:
        load_classifier(path)
    message = str(error.value)
    assert message.isprintable()
    return message


def test_message_has_no_control_characters() -> None:
    assert str(UserError("a\nb\x1b[2J\ud800")) == "a b [2J "


def test_settings_are_a_small_tree(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    many: list[Any] = []
    for _ in range(40):
        many = [many, many]
    deep: Any = 1
    for _ in range(60):
        deep = [deep]
    for value in (endless, many, deep, {(1,): [endless]}, torch.zeros(1)):
        checkpoint = load(SMALL)
        checkpoint["hyper_parameters"]["lr"] = value
        assert "plain values, or too many" in refused(checkpoint, tmp_path)


@pytest.mark.parametrize(
    "weights",
    [torch.zeros(10, device="meta"), torch.zeros(10).to_sparse()],
    ids=["meta", "sparse"],
)
def test_weights_without_values_are_refused(weights: torch.Tensor, tmp_path: Path) -> None:
    checkpoint = load(SMALL)
    checkpoint["state_dict"]["backbone.head.bias"] = weights
    assert "not a checkpoint" in refused(checkpoint, tmp_path)
    checkpoint["state_dict"] = OrderedDict({1: torch.zeros(10)})
    assert "not a checkpoint" in refused(checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("network", "arguments"),
    [
        ("LSTM", {"input_size": 1, "hidden_size": 1, "num_layers": 10**9}),
        ("Linear", {"in_features": 10**5, "out_features": 10**4}),
        ("Linear", {"in_features": 10**12, "out_features": 10**12}),
        ("Transformer", {"d_model": 1, "nhead": 1, "num_encoder_layers": 10**9}),
        ("Upsample", {"scale_factor": 10**3}),
        ("Flatten", {}),
        ("Conv2d", {"in_channels": 3, "out_channels": 1, "kernel_size": 1}),
    ],
    ids=str,
)
def test_network_that_its_weights_do_not_suggest(network: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    weights = DigitClassifier(nn.Flatten()).state_dict()
    if network == "Conv2d":  # its weights fit, and it fails on a gray image
        weights = DigitClassifier(nn.Conv2d(**arguments)).state_dict()
    backbone = {"class_path": f"torch.nn.{network}", "init_args": arguments}
    checkpoint = {"state_dict": weights, "global_step": 1, "hyper_parameters": {"backbone": backbone}}
    started_at = time.process_time()
    assert "does not fit its classes" in refused(checkpoint, tmp_path)
    assert time.process_time() - started_at < 30


def test_header_of_a_published_file_is_verified(tmp_path: Path) -> None:
    content = pack_safetensors(load(SMALL))
    path = tmp_path / "a.safetensors"
    path.write_bytes(content.replace(b'"backbone.head.bias"', b'"backbone.head.bjas"', 1))
    with pytest.raises(UserError, match="damaged"):
        load(path)
    header, _ = split_header(content)
    assert json.loads(header["__metadata__"]["mnist_lit"])["tensors"].keys() == header.keys() - {"__metadata__"}
