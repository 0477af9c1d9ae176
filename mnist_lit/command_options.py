"""The options and the help of the commands that LightningCLI does not parse; only the standard library is imported."""

import argparse
from collections.abc import Callable
from pathlib import Path

from mnist_lit.command_parser import CHECKPOINT, OUTPUTS, RECIPE, REFERENCE, CommandParser, command_line, whole_number
from mnist_lit.files import project_path


def _shown(path: str) -> str:
    """A file that is part of the project, as a command line in the current folder names it."""
    file = project_path(path)
    return command_line([str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)])


def _compare() -> CommandParser:
    parser = CommandParser(
        "compare",
        usage="[CONFIG ...] [--seeds N] [--folds K] [--change '...'] [--resume] [--ray | --together] "
        "[any option of mnist-lit fit]",
        description="""\
Train and measure each recipe, and report the results in a table and the accuracy curves in a plot.

Writes results.md, results.json and accuracy.png into lightning_logs/compare/version_N, beside the runs. Each run reads
the test set once, with the weights of the last epoch. To choose a recipe, use --folds, with which no run reads it.""",
        epilog=f"""\
CONFIG: recipes, before all options: YAML files, or names of the project's (default: ds_cnn_v1 ds_cnn_v2 ds_cnn_v3).

examples:
  mnist-lit compare --data.source sample --trainer.max_epochs 5
  mnist-lit compare {RECIPE} --change model.deskew=false --seeds 5
  mnist-lit compare {RECIPE} --change model.lr=0.03 --folds 6""",
        passes_on=True,
    )
    seeds = "runs per recipe; their seeds count up from the recipe's (default: 1)"
    parser.add_argument("--seeds", type=whole_number(1), default=1, metavar="N", help=seeds)
    parser.add_argument(
        "--folds",
        type=whole_number(2),
        default=0,
        metavar="K",
        help="cross-validation instead of a test: train each recipe and seed K times, each time without another K-th "
        "of the training images (neighbors in their file, so of other writers), and measure it on that part",
    )
    parser.add_argument(
        "--change",
        action="append",
        default=[],
        metavar="'OPTION=VALUE ...'",
        help="also compare each recipe with these options changed, such as model.deskew=false; repeatable",
    )
    resume = "resume the newest comparison of the same recipes and options: skip its finished runs"
    parser.add_argument("--resume", action="store_true", help=resume)
    parser.add_argument(
        "--ray",
        action="store_true",
        help="run in parallel with Ray (extra `ray`): one run per core of this machine, with one thread each (with "
        "OMP_NUM_THREADS, that many threads and cores per run), or one per GPU; with RAY_ADDRESS, on the machines of "
        "that cluster, which must share this folder and the environment",
    )
    parser.add_argument(
        "--together",
        action="store_true",
        help="train all runs of a recipe at once on one device, as one batched model; not for recipes with random "
        "numbers in training (augmentation, dropout), plateau, clipped gradients or callbacks other than EMA",
    )
    return parser


def _search() -> CommandParser:
    parser = CommandParser(
        "search",
        usage="CONFIG --vary OPTION=VALUES ... [--trials N] [--seeds N] [--resume] [any option of mnist-lit fit]",
        description="""\
Train a recipe repeatedly, with values that Optuna proposes for some of its options (by its tree-structured
Parzen estimator), and rank these trials by cross-entropy on the validation split, which varies less by chance than
accuracy does. The test set is not read.

Writes search.md and Optuna's journal, study.log, into lightning_logs/search/version_N, beside the runs.""",
        epilog=f"""\
CONFIG: the recipe, before all options: a YAML file, or the name of one of the project's.

VALUES, as YAML: a list of choices, or a range with both ends, on a logarithmic scale with log: true.
If both ends are integers, so are the proposed values; write 0.0 and 1.0 for real numbers.

example:
  mnist-lit search {RECIPE} --vary 'model.image_size=[16, 18, 20]' \\
    --vary 'model.lr={{low: 0.005, high: 0.05, log: true}}'""",
        passes_on=True,
    )
    vary = "option and the values to try, such as model.lr=[0.01,0.02]; repeatable"
    parser.add_argument("--vary", action="append", required=True, metavar="OPTION=VALUES", help=vary)
    parser.add_argument(
        "--trials", type=whole_number(1), default=20, metavar="N", help="number of trials (default: 20)"
    )
    parser.add_argument("--seeds", type=whole_number(1), default=1, metavar="N", help="runs per trial (default: 1)")
    resume = "resume the newest search with the same recipe and options"
    parser.add_argument("--resume", action="store_true", help=resume)
    return parser


def _robustness() -> CommandParser:
    parser = CommandParser(
        "robustness",
        usage="[FILE|last|best ...] [--split test|val] [--data.source S] [--data.data_dir DIR] [--trust PACKAGE ...]",
        description="""\
Measure the accuracy of checkpoints on the test images and on distorted test images, which no recipe
was chosen by, and the expected calibration error: how far the predicted probabilities are from the accuracy.
With --split val, each is measured on the images that its run held out, to choose a recipe; the table then has the means
over the checkpoints of a recipe, such as those of `mnist-lit compare --folds`.

Writes robustness.md, robustness.json and robustness.png into lightning_logs/robustness.""",
        epilog="Example: mnist-lit robustness last",
    )
    parser.add_argument("checkpoints", nargs="*", metavar="FILE", help=f"{CHECKPOINT} (default: the reference runs)")
    split = "test images (default), or validation images of each checkpoint's own run"
    parser.add_argument("--split", choices=["test", "val"], default="test", help=split)
    sources = "mnist: the official 10,000 test images (default); sample: 500 images; ignored with --split val"
    parser.add_data(sources, "mnist")
    parser.add_trust()
    return parser


def _export() -> CommandParser:
    parser = CommandParser(
        "export",
        usage="--ckpt_path FILE|last|best [--format onnx|torch|int8] [--output FILE]",
        description="""\
Save a checkpoint, with its preprocessing, as one file that needs neither this package nor Lightning.
Input: pixels, white on black, uint8 (N, 1, 28, 28), any N. Output: probabilities of the digits, float32 (N, 10).

The file is loaded again and compared with the checkpoint on all test images, or on the sample if MNIST is not in
--data.data_dir. For onnx and torch, all predictions must be equal and all probabilities within 0.00001; for int8, the
accuracy is printed.""",
        epilog=f"Example: mnist-lit export --ckpt_path {_shown(REFERENCE)} --format int8",
    )
    parser.add_argument("--ckpt_path", required=True, metavar="FILE", help=f"{CHECKPOINT} (required)")
    formats = "onnx: for any ONNX runtime (default); torch: for torch.export.load; int8: ONNX with 8-bit weights"
    parser.add_argument("--format", choices=list(OUTPUTS), default="onnx", help=formats)
    defaults = ", ".join(OUTPUTS.values())
    parser.add_argument("--output", metavar="FILE", help=f"file to write (by format: {defaults})")
    parser.add_data("test images: mnist, or sample, without a download (default: those of the training data)")
    parser.add_trust()
    return parser


def _publish() -> CommandParser:
    parser = CommandParser(
        "publish",
        usage="FILE|last|best FILE.safetensors",
        description="""\
Write a checkpoint's weights and settings as a safetensors file, which cannot contain code. Like a
checkpoint, it works with test and predict (--ckpt_path FILE.safetensors); it cannot be resumed.""",
        epilog=f"Example: mnist-lit publish {_shown(REFERENCE)} digits.safetensors",
    )
    parser.add_argument("checkpoint", metavar="FILE", help=CHECKPOINT)
    parser.add_argument("target", metavar="FILE.safetensors", help="the file to write")
    return parser


def _read() -> CommandParser:
    parser = CommandParser(
        "read",
        usage="PICTURE ... [--ckpt_path FILE|last|best] [--invert | --no-invert] [--show] [--json]",
        description="""\
Read the handwritten digit in each picture: a photo, scan or drawing of one digit on paper or a board.

Prints a table of the two most likely digits and their probabilities, and writes it into predictions.csv in the current
folder. A picture with several digits, a blank one and a file that is no picture are reported on stderr, one line each;
the other pictures are read, and the exit code is 1. A letter or any other shape is read as the digit that it resembles
most; the column `unlike digits` marks some of them, and 2 % of digits.""",
        epilog="Example: mnist-lit read photos/*.jpg --show",
    )
    pictures = "files, folders (the files directly in them) or glob patterns; of an animation the first frame is read"
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help=pictures)
    parser.add_argument(
        "--ckpt_path", metavar="FILE", help=f"{CHECKPOINT} (default: the project's DS_CNN_V3 for photos)"
    )
    invert = "digits are lighter (--invert) or darker (--no-invert) than their background; default: detected"
    parser.add_argument("--invert", action=argparse.BooleanOptionalAction, help=invert)
    show = "also write predictions.png, the digits (the first 400) as the network sees them"
    parser.add_argument("--show", action="store_true", help=show)
    as_json = "print JSON instead of the table, with the errors, too, and do not write predictions.csv"
    parser.add_argument("--json", action="store_true", help=as_json)
    parser.add_trust()
    return parser


def _demo() -> CommandParser:
    parser = CommandParser(
        "demo",
        usage="[--ckpt_path FILE|last|best] [--port NUMBER]",
        description="""\
Serve a web page that reads the digit you draw on it, with mouse, finger or keyboard, or a photo of one. It shows the
probabilities of the ten digits as you draw, and the pixels that the network gets, and compares the three networks of
the project. Only this machine can open the page, and it needs no internet.""",
        epilog="Example: mnist-lit demo --ckpt_path last",
    )
    own = f"one more network to compare, chosen first: {CHECKPOINT}"
    parser.add_argument("--ckpt_path", metavar="FILE", help=own)
    parser.add_argument("--port", type=int, default=7860, metavar="NUMBER", help="port; 0: any free one (7860)")
    parser.add_trust()
    return parser


def _benchmark() -> CommandParser:
    parser = CommandParser(
        "benchmark",
        usage="[PART ...] [--rounds N] [--config FILE] [any other option of mnist-lit fit]",
        description="""\
Measure the training speed of `mnist-lit fit`, including progress bar, TensorBoard and checkpoints.

parts (default: all):
  overhead  compare with a plain PyTorch loop over the same images, by batch size
  others    compare with Lightning's defaults and a loader that reads image by image, and with the published training
  recipes   run a whole fit of each of the three recipes (on a GPU also with `gpu`), of `fast` and of `published`: time
            to 97.49, 99 and 99.2 % validation accuracy and to the end, peak memory; ignores --config and --rounds
  graphs    compare with and without CUDA graphs, by batch size, and check that a fit can be repeated and resumed
            (only on a GPU)

The fit and the plain loop take turns of 40 steps in one process. Results are medians of the rounds with minimum and
maximum. An epoch includes the logs and checkpoints at its end; validation is timed separately. Writes benchmark.md and
benchmark.json into lightning_logs/benchmark, where the last results of other parts are preserved.""",
        epilog=f"Example: mnist-lit benchmark overhead others --rounds 3 --config {RECIPE}",
        passes_on=True,
    )
    parser.add_argument("--rounds", type=whole_number(1), default=5, metavar="N", help="rounds of each measurement (5)")
    recipe = "recipe (ds_cnn_v1); several add up, as in mnist-lit fit"
    parser.add_argument("-c", "--config", action="append", metavar="FILE", help=recipe)
    return parser


PARSERS: dict[str, Callable[[], CommandParser]] = {
    "compare": _compare,
    "search": _search,
    "robustness": _robustness,
    "export": _export,
    "publish": _publish,
    "read": _read,
    "demo": _demo,
    "benchmark": _benchmark,
}
