"""Publish weights: a file to give away, in a format that holds nothing that could run."""

from pathlib import Path

from mnist_lit import UserError, durable
from mnist_lit.checkpoints import load, pack
from mnist_lit.parser import CommandParser

DESCRIPTION = """Write a checkpoint's weights, and the settings that they were trained with, as a safetensors file. It
is tested and predicts as the checkpoint does (--ckpt_path FILE.safetensors); a run cannot go on from it."""


def main(args: list[str]) -> None:
    """Run `mnist-lit publish` with its arguments.

    Raises:
        UserError: The checkpoint cannot be read, or the file not be written.
        SystemExit: The arguments are at fault, or ask for help.
    """
    parser = CommandParser(
        "publish",
        usage="CHECKPOINT FILE.safetensors",
        description=DESCRIPTION,
        epilog="Example: mnist-lit publish lightning_logs/reference/ds_cnn_v3/checkpoints/last.ckpt digits.safetensors",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="its file")
    parser.add_argument("target", metavar="FILE.safetensors", help="what to write")
    options = parser.parse_args(args)
    if Path(options.target).suffix != ".safetensors":
        raise UserError(f"{options.target}: the name must end with .safetensors, by which such a file is known.")
    content = pack(load(options.checkpoint))
    durable.write(Path(options.target), content)
    print(f"{options.target}: {len(content):,} bytes; mnist-lit test --ckpt_path {options.target}")
