"""The parser of one command, and texts that several commands share; only the standard library is imported."""

import argparse
import difflib
import os
import shlex
import subprocess
from collections.abc import Callable, Iterable
from typing import NoReturn

REFERENCES = [f"lightning_logs/reference/ds_cnn_v{number}/checkpoints/last.ckpt" for number in (1, 2, 3)]
"""The checkpoints of the reference runs of the three networks."""

REFERENCE = REFERENCES[-1]
"""One of them, in examples."""

READERS = [*REFERENCES[:2], "lightning_logs/reference/photos/checkpoints/last.ckpt"]
"""The checkpoints that read pictures, the last one by default: a DS_CNN_V3 that knows more ways to write 1, 7 and 9."""

RECIPE = "ds_cnn_v2"
"""A recipe of the project, in examples."""

OUTPUTS = {"onnx": "digits.onnx", "torch": "digits.pt2", "int8": "digits_int8.onnx"}
"""The file that `export` writes by default, for each format."""

CHECKPOINT = "a checkpoint: a file, or `last` or `best` of the newest run in lightning_logs"

TRUST = "packages or modules whose classes a checkpoint may name, in addition to this project's and torch.nn's"


class CommandParser(argparse.ArgumentParser):
    """Parse the options of a command and report errors in one line.

    Args:
        name: The command.
        usage: Its arguments, after its name.
        description: Its description.
        epilog: Its examples.
        passes_on: Whether options that it does not know belong to `mnist-lit fit`.
    """

    def __init__(self, name: str, usage: str, description: str, epilog: str, passes_on: bool = False) -> None:
        super().__init__(
            prog=f"mnist-lit {name}",
            usage=f"%(prog)s {usage}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.passes_on = passes_on

    def error(self, message: str) -> NoReturn:
        """Print the message and exit with 2."""
        self.exit(2, f"mnist-lit: error: {message}; see {self.prog} --help.\n")

    def similar(self, option: str) -> str:
        """The option that a misspelled one may stand for, as a question, or nothing."""
        known = [name for action in self._actions for name in action.option_strings]
        name = closest(option.partition("=")[0], known)
        return f" (did you mean {name}?)" if name else ""

    def add_trust(self) -> None:
        """Add the option that names trusted packages."""
        self.add_argument("--trust", nargs="+", default=[], metavar="PACKAGE", help=TRUST)

    def add_data(self, sources: str, default: str | None = None) -> None:
        """Add the options for the test images."""
        self.add_argument("--data.source", dest="source", choices=["mnist", "sample"], default=default, help=sources)
        folder = "folder of the official files (data)"
        self.add_argument("--data.data_dir", dest="data_dir", default="data", metavar="FOLDER", help=folder)


def whole_number(least: int) -> Callable[[str], int]:
    """The type of an option that takes a whole number of at least `least`."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"takes a whole number of {least} or more, not {text}")
        return int(text)

    return convert


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that a misspelled one most likely stands for, or None."""
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def command_line(words: list[str]) -> str:
    """A command line of these words, to be pasted into the shell of this system."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
