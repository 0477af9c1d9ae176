"""Publish a checkpoint's weights and settings as a safetensors file, which cannot contain code."""

import argparse
import hashlib
import json
from typing import Any

import safetensors.torch

from mnist_lit import UserError
from mnist_lit.checkpoints.find import find_checkpoint
from mnist_lit.checkpoints.io import SETTINGS, load, split_header
from mnist_lit.command_parser import command_line
from mnist_lit.files import expand, write_atomically


def main(options: argparse.Namespace) -> None:
    """Run `mnist-lit publish`.

    Raises:
        UserError: The checkpoint cannot be read, or the name of the file to write has another ending.
    """
    target = expand(options.target)
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: the name of the file must end with .safetensors.")
    content = pack_safetensors(load(find_checkpoint(options.checkpoint)))
    write_atomically(target, content)
    test = command_line(["mnist-lit", "test", "--ckpt_path", str(target)])
    print(f"{target}: {len(content):,} bytes. To test it: {test}")


def pack_safetensors(checkpoint: dict[str, Any]) -> bytes:
    """The weights and settings of a checkpoint as a safetensors file, without the state that resuming needs."""
    weights = {name: tensor.contiguous().clone() for name, tensor in checkpoint["state_dict"].items()}
    keys = ("global_step", "pytorch-lightning_version", *SETTINGS.values())
    tensors, data = split_header(safetensors.torch.save(weights))
    text = json.dumps({key: checkpoint[key] for key in keys if key in checkpoint} | {"tensors": tensors})
    checksum = hashlib.sha256(text.encode() + data).hexdigest()
    return safetensors.torch.save(weights, {"format": "pt", "mnist_lit": text, "sha256": checksum})
