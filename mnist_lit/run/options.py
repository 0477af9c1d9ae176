"""Options of fit, validate, test and predict: their help, their checks, and errors in one line."""

import contextlib
import inspect
import math
import re
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import LightningArgumentParser

from mnist_lit import UserError, augment, backbones, printable
from mnist_lit.checkpoints.trust import refusal
from mnist_lit.classifier import DigitClassifier
from mnist_lit.command_parser import CHECKPOINT, closest
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.run.recipe import recipe_names

DENIED = re.compile(r"Importing '([\w.]+)' is not allowed")
"""jsonargparse's message about a class that is not trusted."""

_GROUPS: dict[str, Callable[..., object]] = {"model": DigitClassifier, "data": MNISTDataModule, "trainer": Trainer}

_BOUNDS: dict[str, tuple[float, float, str]] = {
    "seed_everything": (0, 2**32 - 1, "from 0 to 4294967295"),
    "trainer.accumulate_grad_batches": (1, math.inf, "1 or more"),
    "trainer.check_val_every_n_epoch": (1, math.inf, "1 or more"),
    "trainer.gradient_clip_val": (0, math.inf, "0 or more"),
    "trainer.log_every_n_steps": (0, math.inf, "0 or more"),
    "trainer.num_nodes": (1, math.inf, "1 or more"),
    "trainer.num_sanity_val_steps": (-1, math.inf, "-1 (all) or more"),
}
"""Numbers that Lightning (2.6.6) does not check itself: it fails later with a traceback."""


class Parser(LightningArgumentParser):
    """Report errors in one line and keep `--help` short."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        self.exit(2, f"mnist-lit: error: {printable(_one_line(message))}\n")

    def format_help(self, *args: Any, **kwargs: Any) -> str:
        text: str = super().format_help(*args, **kwargs)
        return re.sub(r",\s+known\s+subclasses:[^)]{2000,}\)", ")", text)  # hundreds of classes are an nn.Module

    def add_method_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        added: list[str] = super().add_method_arguments(*args, **kwargs)
        for action in self._actions:
            if action.dest == "ckpt_path":
                action.help = (
                    f"{CHECKPOINT}, of the network in --config or --model.backbone if one is given. fit resumes that "
                    "run in its folder."
                )
        return added


def check_options(command: str, options: Namespace) -> None:
    """Check what Lightning (2.6.6) would answer with a traceback, or without the name of the option.

    Raises:
        UserError: A number is out of range, or the accelerator does not exist or is not available.
    """
    for group in _GROUPS:
        if not isinstance(options.get(group), Namespace):  # a recipe may say `trainer: null`
            raise UserError(f"--{group} must map options to values, not be {options.get(group)}.")
    for key, (low, high, bounds) in _BOUNDS.items():
        value = options[key]
        if isinstance(value, int | float) and not isinstance(value, bool) and not low <= value <= high:
            raise UserError(f"--{key} must be {bounds}, not {value}.")
    trainer = options.trainer
    for key in ("max_epochs", "max_steps", "limit_train_batches"):
        if trainer[key] == 0:
            raise UserError(f"--trainer.{key} {trainer[key]} trains nothing: give a larger one, or leave it out.")
    limit = {"validate": "limit_val_batches", "test": "limit_test_batches", "predict": "limit_predict_batches"}
    if command in limit and trainer[limit[command]] == 0:
        raise UserError(f"--trainer.{limit[command]} 0 reads no images: give a larger one, or leave it out.")
    if trainer.max_time is not None and not duration_s(trainer.max_time):
        raise UserError(f"--trainer.max_time {trainer.max_time} trains nothing: give a longer one, or leave it out.")
    if trainer.barebones:
        raise UserError("--trainer.barebones does not log or save: measure the speed with mnist-lit benchmark instead.")
    if trainer.max_epochs == trainer.max_steps == -1 and options.model.schedule == "one_cycle":
        raise UserError("The learning rate schedule needs an end: give --trainer.max_epochs or --trainer.max_steps.")
    if isinstance(trainer.strategy, str) and re.match("ddp_(spawn|fork|notebook)", trainer.strategy):
        raise UserError(f"--trainer.strategy {trainer.strategy} is for notebooks: use ddp.")
    if isinstance(trainer.accelerator, str) and trainer.accelerator != "auto":
        names = sorted({*AcceleratorRegistry.available_accelerators(), "gpu"})
        if trainer.accelerator not in names:
            raise UserError(f"--trainer.accelerator takes auto or {' or '.join(names)}, not {trainer.accelerator}.")
        kinds = ("cuda", "mps") if trainer.accelerator == "gpu" else (trainer.accelerator,)
        if not any(AcceleratorRegistry[kind]["accelerator"].is_available() for kind in kinds):
            raise UserError(f"--trainer.accelerator {trainer.accelerator} is not available here: use auto or cpu.")


def duration_s(max_time: Any) -> float:
    """Seconds of a value of `--trainer.max_time`."""
    return Timer(max_time).time_remaining() or 0.0


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Turn errors that a user can correct into a UserError of one line.

    Raises:
        UserError: Such an error was raised.
    """
    try:
        yield
    except UserError:
        raise
    except MisconfigurationException as error:  # Lightning's, for options of the Trainer
        raise UserError(" ".join(str(error).split())) from error
    except Exception as error:
        message = _explain(error)
        if message is None:
            raise
        raise UserError(message) from error


def _explain(error: Exception) -> str | None:
    """The message for a user, or None for an error of the program."""
    text = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    if any("checkpoint_connector" in frame.filename and "restore" in frame.name for frame in frames):
        return f"--ckpt_path: the state in the checkpoint cannot be restored ({type(error).__name__}: {text})."
    if isinstance(error, UnicodeDecodeError):
        return f"--config: the file is not text ({text})."
    if isinstance(error, torch.distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in text):
        reason = re.sub(r"^\[.*?\] ", "", str(error).splitlines()[0]).partition(". This")[0]
        return f"Another process has ended, or cannot be reached: {reason}"
    out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if out_of_memory or (isinstance(error, RuntimeError) and "allocate memory" in text):
        return "There is not enough memory: reduce --data.batch_size or --model.image_size."
    missing = re.search(r"Requirement '([\w.-]+)|No module named '([\w.]+)'", text)
    if missing and isinstance(error, ImportError | ValueError) and "mnist_lit" not in missing[0]:
        package = missing[1] or missing[2]
        user = re.search(r"class_path '[\w.]+\.(\w+)'|^`(\w+)`", text)
        needed = f"{user[1] or user[2]} needs" if user else "An option needs"
        return f"{needed} the package {package}, which is not installed: install it, or leave that option out."
    if text.startswith("Early stopping conditioned on metric"):
        return text
    if isinstance(error, ValueError):
        causes = [line.strip(" -") for line in str(error).splitlines() if line.startswith("  - ")]
        if text.startswith("Does not validate") and causes:  # jsonargparse wraps what a class raises
            return causes[0]
        if "val_check_interval" in text:  # Lightning compares it to the number of batches, which it knows late
            return f"--trainer.{text.replace('`', '')}"
    return None


def _one_line(message: str) -> str:
    """Jsonargparse's message in one line for a user; its first line if its form is unknown."""
    denied = DENIED.search(message)
    if denied:
        return refusal("The checkpoint, or the config.yaml beside it,", denied[1])
    unknown = re.match(r"(?:unrecognized arguments: |Option '|Subcommand .* option ')([^\s']+)", message)
    if unknown:
        return f"{message}{_similar_options(unknown[1])} See mnist-lit COMMAND --help."
    key = re.match(r'Parser key "(.+?)":', message)
    if not key:
        return " ".join(message.split())
    if key[1] == "config" and "File does not exist" in message:
        recipes = ", ".join(recipe_names())
        file = message.partition("not exist: ")[2]
        return f"--config: {file} is neither a file nor a recipe of the project ({recipes})."
    option = f"--{key[1]}" if "." in key[1] or key[1] in ("seed_everything", "config") else key[1]
    value = re.search(r"(?:Got value:|Given value:|given class_path|path string:|but) '?([^'\n ]*)", message)
    other = re.search(r"Import path (\S+) does not correspond to a subclass of (\w+)", message)
    if other:
        return f"{option} takes a class that is a {other[2]}, which {other[1]} is not."
    if value and ("dot import path" in message or "class_path" in message):
        reason = re.search(r"(No module named .*|module .* has no attribute .*)", message)
        return f"{option}: there is no class {value[1]}{f' ({reason[1]})' if reason else ''}; {_own_classes(key[1])}."
    number = re.search(r"Not of type (\w+): (?:(\S+ )?does not conform to restriction (.*)|.*?'(.*)')", message)
    if number:
        kind, given, restriction, text = number.groups()
        whole = "whole " if kind.endswith("Int") else ""
        bounds = f" {restriction.replace('v', '')}" if restriction else ""
        given = given or text or (value[1] if value else "")
        return f"{option} takes a {whole}number{bounds}, not {given.strip()}."
    expected = re.findall(r"Expected an? (.+?)(?:\. Got value|\n|$)", message)
    kinds = [re.sub(r"<class '(?:.*\.)?(\w+)'>|typing\.Literal\[(.*)\]", r"\1\2", kind) for kind in expected]
    kinds = [kind.replace("'", "").replace(", ", " or ") for kind in kinds]
    kinds = [kind for kind in kinds if kind != "NoneType" and not kind.startswith("path ")]
    if not kinds:
        return f"{option}: {' '.join(message.removeprefix(key[0]).split())}"
    return f"{option} takes {' or '.join(kinds)}{f', not {value[1]}' if value else ''}."


def _own_classes(option: str) -> str:
    own = {"model.backbone": "DS_CNN_V1, DS_CNN_V2, DS_CNN_V3", "model.augment": "RandomAffineBatch"}
    choice = f"choose from {own[option]}, or " if option in own else ""
    return f"{choice}give one that Python can import, as package.module.Class"


def _similar_options(option: str) -> str:
    """The options that a misspelled one may stand for."""
    group, _, name = option.partition("=")[0].lstrip("-").rpartition(".")
    if group in _GROUPS:
        known = list(inspect.signature(_GROUPS[group]).parameters)
        similar = closest(name, known)
        if similar:
            return f": did you mean --{group}.{similar}?"
        return f"; --{group} takes {', '.join(known)}." if len(known) < 20 else "."
    if option.startswith("-"):
        options = {
            name: f"{key}.{name}" for key, owner in _GROUPS.items() for name in inspect.signature(owner).parameters
        }
        options |= {name: name for name in ("config", "ckpt_path", "seed_everything", "trust", "watch_test")}
        similar = closest(name, options)
        return f": did you mean --{options[similar]}?" if similar else "."
    if option.isidentifier():  # jsonargparse names only the last part of an option of a nested class
        own = {"backbone": backbones.DS_CNN_V1, "augment": augment.RandomAffineBatch}
        return "".join(f"; --model.{key}: {', '.join(inspect.signature(kind).parameters)}" for key, kind in own.items())
    return "."
