"""Publish weights: a file to give away, in a format that holds nothing that could run."""

import argparse
from pathlib import Path

from mnist_lit import UserError, files
from mnist_lit.checkpoints.io import find, load, pack


def main(options: argparse.Namespace) -> None:
    """Run `mnist-lit publish` with its options.

    Raises:
        UserError: The checkpoint cannot be read, or the file not be written.
    """
    if Path(options.target).suffix != ".safetensors":
        raise UserError(f"{options.target}: the name must end with .safetensors, by which such a file is known.")
    content = pack(load(find(options.checkpoint)))
    files.write(Path(options.target), content)
    print(f"{options.target}: {len(content):,} bytes; mnist-lit test --ckpt_path {options.target}")
