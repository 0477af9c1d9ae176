"""The commands: what each does, its options and its help.

This module needs the standard library alone, so that help and mistakes are told at once: torch and Lightning, which the
commands' own modules import, take ten seconds. Of fit, validate, test and predict, LightningCLI finds the options in
the classes themselves, and takes as long.
"""

import argparse
from collections.abc import Callable
from itertools import takewhile
from typing import NoReturn

COMMANDS = {
    "fit": ("mnist_lit.run.lightning_cli", "train a network"),
    "validate": ("mnist_lit.run.lightning_cli", "measure a checkpoint on the validation split"),
    "test": ("mnist_lit.run.lightning_cli", "measure a checkpoint on the 10,000 test images"),
    "predict": (
        "mnist_lit.run.lightning_cli",
        "write down the digits that a checkpoint reads, in the test images or in your own pictures",
    ),
    "compare": ("mnist_lit.experiments.compare", "train and test several recipes; a table and the curves"),
    "search": ("mnist_lit.experiments.search", "try other values of a recipe's options, as Optuna proposes them"),
    "robustness": ("mnist_lit.evaluation.robustness", "accuracy of checkpoints on distorted test images"),
    "export": ("mnist_lit.evaluation.export", "write a checkpoint as ONNX or torch.export, checked against it"),
    "publish": ("mnist_lit.checkpoints.publish", "write a checkpoint's weights as safetensors"),
    "demo": ("mnist_lit.photos.demo", "a page to draw a digit on, or to drop a photo of one"),
    "benchmark": ("mnist_lit.benchmark.measure", "training speed beside other ways to train"),
}
"""Each command's module, whose `main` takes what `parse` gives, and what it does."""

LIGHTNING_HELP = {
    name: {
        "usage": f"mnist-lit {name} {usage} [OPTION ...]",
        "description": f"{COMMANDS[name][1].capitalize()}. Example: mnist-lit {name} {example}",
    }
    for name, usage, example in (
        ("fit", "[--config FILE] [--ckpt_path last]", "--config configs/ds_cnn_v2.yaml --trainer.max_epochs 5"),
        ("validate", "--ckpt_path FILE|last|best", "--ckpt_path best"),
        ("test", "--ckpt_path FILE|last|best", "--ckpt_path last --data.data_dir ~/datasets"),
        (
            "predict",
            "--ckpt_path FILE|last|best [--data.images PATH ...]",
            "--ckpt_path last --data.images photos/*.jpg --data.show",
        ),
    )
}
"""How the help begins of the commands whose parser is LightningCLI's."""

REFERENCE = "lightning_logs/reference/ds_cnn_v3/checkpoints/last.ckpt"
"""The checkpoint that comes with the project."""

OUTPUTS = {"onnx": "digits.onnx", "torch": "digits.pt2", "int8": "digits_int8.onnx"}
"""By format, the file that `export` writes by default."""

CHECKPOINT = "a checkpoint's file; or `last` or `best` of the newest run below lightning_logs"

TRUST = "packages or modules whose classes a checkpoint may name, beside this project's and torch.nn's"


class CommandParser(argparse.ArgumentParser):
    """Tells a mistake in one line.

    Args:
        name: The command.
        usage: What follows it.
        description: What it does.
        epilog: Examples.
        hands_on: Whether options that it does not know are for `mnist-lit fit`.
    """

    def __init__(self, name: str, usage: str, description: str, epilog: str, hands_on: bool = False) -> None:
        super().__init__(
            prog=f"mnist-lit {name}",
            usage=f"%(prog)s {usage}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.hands_on = hands_on

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with 2."""
        self.exit(2, f"mnist-lit: error: {message}; {self.prog} --help tells more.\n")

    def add_trust(self) -> None:
        """Add the option that lets a checkpoint name more classes."""
        self.add_argument("--trust", nargs="+", default=[], metavar="PACKAGE", help=TRUST)

    def add_data(self, sources: str, default: str | None = None) -> None:
        """Add the options that name the test images."""
        self.add_argument("--data.source", dest="source", choices=["mnist", "sample"], default=default, help=sources)
        folder = "folder of the official files (data)"
        self.add_argument("--data.data_dir", dest="data_dir", default="data", metavar="FOLDER", help=folder)


def parse(command: str, args: list[str]) -> argparse.Namespace | list[str]:
    """What a command's `main` takes: its options, or the arguments as they are where LightningCLI reads them.

    Among the options, `given` has all arguments; `names` and `flags` those that the command does not know, and hands on
    to `mnist-lit fit`: first the recipes or parts, then what begins with the first option.

    Raises:
        SystemExit: The arguments are at fault, or ask for help.
    """
    if command not in _PARSERS:
        return [command, *args]
    parser = _PARSERS[command]()
    options, rest = parser.parse_known_args(args)
    if rest and not parser.hands_on:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.given = args
    options.names = list(takewhile(lambda arg: not arg.startswith("-"), rest))
    options.flags = rest[len(options.names) :]
    return options


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"takes a whole number, 1 or more, not {text}")
    return int(text)


def _compare() -> CommandParser:
    parser = CommandParser(
        "compare",
        usage="[CONFIG ...] [--seeds N] [--change '...'] [--resume] [--ray] [any option of mnist-lit fit]",
        description="""\
Train and test each recipe in turn, and compare them.

Writes results.md, results.json and accuracy.png into lightning_logs/compare/version_N, beside the runs. The test set
is read once a run, with the weights of the last epoch.""",
        epilog="""\
CONFIG: recipes as YAML files, given first; the three networks of the specification by default.

examples:
  mnist-lit compare --data.source sample --trainer.max_epochs 5
  mnist-lit compare configs/ds_cnn_v2.yaml --change model.deskew=false --seeds 5""",
        hands_on=True,
    )
    parser.add_argument(
        "--seeds", type=_count, default=1, metavar="N", help="runs of each recipe, with seeds from the recipe's up (1)"
    )
    parser.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="'OPTION=VALUE ...'",
        help="compare each recipe also with these options changed, such as model.deskew=false; can be given repeatedly",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the newest comparison of the same runs where it stopped"
    )
    parser.add_argument(
        "--ray",
        action="store_true",
        help="make runs at the same time, by Ray (extra `ray`): one a core of this machine, with one thread each (as "
        "many as OMP_NUM_THREADS says, and as many cores), or one a GPU; with RAY_ADDRESS on the machines of a "
        "cluster, which must share this folder and the environment",
    )
    return parser


def _search() -> CommandParser:
    parser = CommandParser(
        "search",
        usage="CONFIG --vary OPTION=VALUES ... [--trials N] [--seeds N] [--resume] [any option of fit]",
        description="""\
Train a recipe again and again with other values of some of its options, proposed by Optuna (its
tree-structured Parzen estimator), and rank what was tried by the cross-entropy on the validation split, which moves
less by chance than the accuracy does. The test set is not read.

Writes search.md and Optuna's journal, study.log, into lightning_logs/search/version_N, beside the runs.""",
        epilog="""\
CONFIG: the recipe, a YAML file, given first.

VALUES, as YAML: a list to choose from, or a range with its ends, on a logarithmic scale with log: true.
Between whole ends whole numbers are tried; write 0.0 and 1.0 for all that lies between.

example:
  mnist-lit search configs/ds_cnn_v2.yaml --vary 'model.image_size=[16, 18, 20]' \\
    --vary 'model.lr={low: 0.005, high: 0.05, log: true}'""",
        hands_on=True,
    )
    vary = "what to try, such as model.lr=[0.01,0.02]; can be given repeatedly"
    parser.add_argument("--vary", action="append", required=True, metavar="OPTION=VALUES", help=vary)
    parser.add_argument("--trials", type=_count, default=20, metavar="N", help="proposals to try in all (20)")
    parser.add_argument("--seeds", type=_count, default=1, metavar="N", help="runs of each trial, one a seed (1)")
    parser.add_argument("--resume", action="store_true", help="go on with the newest search of the same")
    return parser


def _robustness() -> CommandParser:
    parser = CommandParser(
        "robustness",
        usage="[FILE|last|best ...] [--data.source SOURCE] [--data.data_dir FOLDER] [--trust PACKAGE ...]",
        description="""\
Accuracy of checkpoints on the test images as they are and distorted, which no recipe was chosen by,
and the expected calibration error: how far the network's probabilities are from its share of right answers.

Writes robustness.md, robustness.json and robustness.png into lightning_logs/robustness.""",
        epilog="Example: mnist-lit robustness last",
    )
    parser.add_argument(
        "checkpoints", nargs="*", metavar="FILE", help=f"{CHECKPOINT} (default: those of the reference runs)"
    )
    parser.add_data("mnist: the official 10,000 test images (default); sample: 500 that need no download", "mnist")
    parser.add_trust()
    return parser


def _export() -> CommandParser:
    parser = CommandParser(
        "export",
        usage="--ckpt_path FILE|last|best [--format onnx|torch|int8] [--output FILE]",
        description="""\
Write a checkpoint into one file that takes pixels, uint8 (N, 1, 28, 28) for any N, white on black,
and gives the digits' probabilities, float32 (N, 10): with its preprocessing, without this package or Lightning.

The file is read again and compared with the checkpoint on all test images: onnx and torch must give the same digit for
each and probabilities within 0.00001; of int8, whose weights take a byte each, the accuracy is told.""",
        epilog=f"Example: mnist-lit export --ckpt_path {REFERENCE} --format int8",
    )
    parser.add_argument("--ckpt_path", required=True, metavar="FILE", help=f"{CHECKPOINT} (required)")
    formats = "onnx: for any ONNX runtime (default); torch: for torch.export.load; int8: ONNX with weights of 8 bits"
    parser.add_argument("--format", choices=list(OUTPUTS), default="onnx", help=formats)
    defaults = ", ".join(OUTPUTS.values())
    parser.add_argument("--output", metavar="FILE", help=f"the file to write, by default {defaults}, by format")
    parser.add_data("images to check with: mnist, or sample, which needs no download (what was trained on)")
    parser.add_trust()
    return parser


def _publish() -> CommandParser:
    parser = CommandParser(
        "publish",
        usage="FILE|last|best FILE.safetensors",
        description="""\
Write a checkpoint's weights, and the settings that they were trained with, as a safetensors file. It
is tested and predicts as the checkpoint does (--ckpt_path FILE.safetensors); a run cannot go on from it.""",
        epilog=f"Example: mnist-lit publish {REFERENCE} digits.safetensors",
    )
    parser.add_argument("checkpoint", metavar="FILE", help=CHECKPOINT)
    parser.add_argument("target", metavar="FILE.safetensors", help="what to write")
    return parser


def _demo() -> CommandParser:
    parser = CommandParser(
        "demo",
        usage="[--ckpt_path FILE|last|best] [--port NUMBER]",
        description="""\
A page in the browser to draw a digit on, with mouse, finger or keyboard, or to drop a photo of one: it
shows the probabilities of the ten digits as you draw, and the 28 x 28 pixels that the network sees. It is served to
this machine alone, and needs no internet.""",
        epilog="Example: mnist-lit demo --ckpt_path last",
    )
    parser.add_argument("--ckpt_path", metavar="FILE", help=f"{CHECKPOINT} ({REFERENCE}, which comes along)")
    parser.add_argument("--port", type=int, default=7860, metavar="NUMBER", help="of 127.0.0.1; 0: any free one (7860)")
    parser.add_trust()
    return parser


def _benchmark() -> CommandParser:
    parser = CommandParser(
        "benchmark",
        usage="[PART ...] [--rounds N] [--config FILE] [any other option of mnist-lit fit]",
        description="""\
How fast `mnist-lit fit` trains, with all that a user gets: progress bar, TensorBoard, checkpoints.

parts (all by default):
  overhead  beside a plain PyTorch loop over the same tensors, by batch size, at the recipe's input size
  others    beside Lightning with a loader that hands out sample by sample, and beside the published training
  growth    seconds an epoch from 10,000 to 240,000 training images
  processes images a second of one process and of two, of one thread each, with the same batch each, on the CPU,
            validation and epoch's end included
  recipes   a whole fit of each of the three recipes, in a process of its own, whatever --config and --rounds say:
            seconds to the first step and from there to the end, peak memory

The first three parts run what they compare in turn, in one process, and tell medians and extremes; the plain loop takes
turns with the fit every 40 steps. An epoch of a fit is timed from its start to the next one's, without validation,
which has a column of its own: so what is written at an epoch's end counts. Writes benchmark.md, benchmark.json and
benchmark.png into lightning_logs/benchmark, where parts that were measured before are kept until they are measured
again.""",
        epilog="Example: mnist-lit benchmark overhead others --rounds 3 --config configs/ds_cnn_v2.yaml",
        hands_on=True,
    )
    parser.add_argument("--rounds", type=_count, default=5, metavar="N", help="rounds, of which the medians count (5)")
    parser.add_argument("-c", "--config", metavar="FILE", help="recipe (that of DS_CNN_V1)")
    return parser


_PARSERS: dict[str, Callable[[], CommandParser]] = {
    "compare": _compare,
    "search": _search,
    "robustness": _robustness,
    "export": _export,
    "publish": _publish,
    "demo": _demo,
    "benchmark": _benchmark,
}
