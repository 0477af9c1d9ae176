"""How the options of fit, validate, test and predict are read, and how a mistake in them is told."""

import difflib
import inspect
import json
import re
from collections.abc import Callable
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

from mnist_lit import augment, backbones
from mnist_lit.checkpoints import trust
from mnist_lit.classifier import DigitClassifier
from mnist_lit.commands import CHECKPOINT
from mnist_lit.data.datamodule import MNISTDataModule

_PARTS: dict[str, Callable[..., object]] = {"model": DigitClassifier, "data": MNISTDataModule, "trainer": Trainer}

_EXPECTED = re.compile(r"Expected an? (.+?)(?:\. Got value|\n|$)")


class Parser(LightningArgumentParser):
    """Tells a mistake in one line, and helps in pages, not in books."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message and exit with 2, without the usage of every option before it."""
        self.exit(2, f"mnist-lit: error: {_one_line(message)}\n")

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        """The help, without lists of the hundreds of classes that are an nn.Module."""
        text: str = super().format_help(*args, **kwargs)
        return re.sub(r",\s+known\s+subclasses:[^)]{2000,}\)", ")", text)

    def add_method_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Add a Trainer method's arguments, with what this project makes of `--ckpt_path`."""
        added: list[str] = super().add_method_arguments(*args, **kwargs)
        for action in self._actions:
            if action.dest == "ckpt_path":
                action.help = (
                    f"{CHECKPOINT}, with --config or --model.backbone of that network's. With fit: go on with that "
                    "run, in its folder."
                )
        return added


def spell_out(args: list[str]) -> list[str]:
    """Arguments as jsonargparse takes them: all of `--data.images A B ...` in one list, a bare switch as true."""
    images: list[str] = []
    others: list[str] = []
    gathers = False
    for arg, following in zip_longest(args, args[1:], fillvalue="-"):
        option, is_given, value = arg.partition("=")
        if option == "--data.images":
            gathers = True
            images += [value] if is_given else []
            if not is_given and following.startswith("-"):
                others.append(arg)  # the parser tells what it lacks
        elif gathers and not arg.startswith("-"):
            images.append(arg)
        else:
            gathers = False
            is_bare = arg in ("--data.invert", "--data.show") and following.startswith("-")
            others.append(f"{arg}=true" if is_bare else arg)
    if len(images) == 1 and images[0].startswith("["):  # a list already
        return [*others, f"--data.images={images[0]}"]
    return [*others, f"--data.images={json.dumps(images)}"] if images else others


def names_backbone(args: list[str]) -> bool:
    """Whether an option or a recipe among the arguments names the network."""
    if any(arg.partition("=")[0] == "--model.backbone" for arg in args):
        return True
    files = [arg.partition("=")[2] for arg in args if arg.startswith("--config=")]
    files += [file for option, file in pairwise(args) if option in ("-c", "--config")]
    for file in files:
        try:
            recipe = yaml.safe_load(Path(file).read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue  # the parser tells
        if isinstance(recipe, dict) and isinstance(recipe.get("model"), dict) and "backbone" in recipe["model"]:
            return True
    return False


def _choice(option: str) -> str:
    """What there is in an option's place."""
    part, _, name = option.partition("=")[0].lstrip("-").rpartition(".")
    if part in _PARTS:
        known = list(inspect.signature(_PARTS[part]).parameters)
        near = difflib.get_close_matches(name, known)
        if near or len(known) < 20:
            return f"; --{part} takes {', '.join(near or known)}"
    elif option.isidentifier():  # of what is nested deeper, only the end is known
        own = {"backbone": backbones.DS_CNN_V1, "augment": augment.RandomAffineBatch}
        return "".join(f"; --model.{key}: {', '.join(inspect.signature(kind).parameters)}" for key, kind in own.items())
    return ""


def _one_line(message: str) -> str:
    """The message of jsonargparse, which may span lines and show Python's names of types, in a line for a person."""
    key = re.match(r'Parser key "(.+?)":', message)
    value = re.search(r"(?:Got value:|Given value:|class_path|import path string:) '?([^'\n]*)", message)
    if message.startswith(("unrecognized arguments", "Subcommand", "Option")):
        unknown = re.search(r"(?:arguments: |option '|Option ')([^\s']+)", message)
        choice = _choice(unknown[1]) if unknown else ""
        return f"{' '.join(message.split())}{choice}; mnist-lit COMMAND --help lists what there is."
    denied = re.search(r"Importing '([\w.]+)' is not allowed", message)
    if denied:
        return trust.refusal("The checkpoint, or the recipe beside it,", denied[1])
    other = re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", message)
    if key and other:
        return f"--{key[1]} takes a class that is a {other[2]}, which {other[1]} is not."
    if not (key and value):
        return re.sub(r'^Parser key "(.+?)":', r"--\1:", " ".join(message.split()))
    if key[1] in ("model.backbone", "model.augment") and "path" in message:
        own = backbones if key[1] == "model.backbone" else augment
        names = [name for name, item in vars(own).items() if isinstance(item, type) and item.__module__ == own.__name__]
        known = ", ".join(name for name in names if not name.startswith("_"))
        why = re.search(r"(No module named .*|module .* has no attribute .*)", message)
        why_text = f" ({why[1]})" if why else ""
        return (
            f"--{key[1]}: there is no class {value[1]}{why_text}; choose from {known}, or give one that Python can "
            "import, as package.module.Class."
        )
    expected = [re.sub(r"<class '(?:.*\.)?(\w+)'>|typing\.(\w+)", r"\1\2", kind) for kind in _EXPECTED.findall(message)]
    kinds = [kind for kind in expected if kind != "NoneType" and not kind.startswith(("path", "dot"))]
    kinds = [re.sub(r"^Literal\[(.*)\]$", r"\1", kind).replace("'", "").replace(", ", " or ") for kind in kinds]
    option = f"--{key[1]}" if "." in key[1] else key[1]  # of what is nested deeper, only the end is known
    return f"{option} takes {' or '.join(kinds)}, not {value[1]}." if kinds else " ".join(message.split())
