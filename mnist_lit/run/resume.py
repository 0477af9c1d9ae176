"""A checkpoint as the start of a command: the settings of its run, and what may change."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_only  # type: ignore[attr-defined]

from mnist_lit import UserError
from mnist_lit.checkpoints.io import load, settings
from mnist_lit.checkpoints.trust import foreign_modules
from mnist_lit.files import LOGS
from mnist_lit.run.options import duration_s
from mnist_lit.run.recipe import read_recipe


class Restored(NamedTuple):
    """A checkpoint and the run that it belongs to."""

    path: Path
    checkpoint: dict[str, Any]
    run_folder: Path | None
    """As `run_folder` returns it."""
    config: str
    """The settings of the run as JSON: all of them to resume it, else those of the model and the data."""
    trusted: set[str]
    """Modules whose classes the settings may name, in addition to `TRUSTED_MODULES`."""


class FinishedError(UserError):
    """A run to resume has no epochs, steps or time left."""


def run_folder(checkpoint: Path) -> Path | None:
    """The folder of a checkpoint's run; None for a file elsewhere, and for the tracked reference runs."""
    # absolute, as a user may name a file in the working folder; all, as a file's name may contain folders
    folders = [folder.parent for folder in checkpoint.absolute().parents if folder.name == "checkpoints"]
    folder = next((folder for folder in folders if (folder / "config.yaml").exists()), None)
    if folder is None or _is_reference(checkpoint):
        return None
    return folder.relative_to(Path.cwd()) if Path.cwd() in folder.parents else folder  # short, as it may be shown


def restore(command: str, options: Namespace, path: Path, folder: Path | None, backbone: str | None) -> Restored:
    """Load the checkpoint that a command starts from.

    Args:
        command: "fit", "validate", "test" or "predict".
        options: The user's options.
        path: The checkpoint.
        folder: The folder of its run, as `run_folder` returns it.
        backbone: Class path of the network that the user has named, or None.

    Raises:
        UserError: The checkpoint does not exist, is damaged, or cannot be used for this command.
    """
    checkpoint = load(path)
    if command == "fit" and "optimizer_states" not in checkpoint:
        raise UserError(f"{path} holds only weights: a run cannot be resumed from it.")
    # a user may name any class; a file may not
    trusted = {*options.trust, *foreign_modules([options.model.as_dict(), options.trainer.as_dict()])}
    config: dict[str, Any] = settings(checkpoint)
    unknown = config["model"].keys() - vars(options.model).keys()
    if unknown:
        raise UserError(
            f"{path} was saved by another version of mnist-lit, which had --model.{min(map(str, unknown))}: use "
            "that version, or train again."
        )
    if not config["model"].get("backbone"):  # the classifier was built in Python
        if backbone is None:
            raise UserError(
                f"{path} does not name its network, as it was not saved by mnist-lit fit: add --model.backbone, with "
                "all arguments that it was built with, such as --model.backbone.dilation."
            )
        config["model"]["backbone"] = options.model.backbone.as_dict()
    if command == "fit" and folder:
        found, config = config, _read_config(folder / "config.yaml")  # also the options of the trainer
        for part, name in (("model", "lr"), ("data", "batch_size")):  # a finder may have changed them
            if name in found[part] and isinstance(config.get(part), dict):
                config[part][name] = found[part][name]
        if isinstance(config.get("trainer"), dict):
            _continue_logs(config["trainer"].get("logger"), folder, checkpoint["global_step"])
        trusted |= {f"lightning.pytorch.{package}" for package in ("callbacks", "loggers", "plugins", "profilers")}
    elif command == "fit":
        rank_zero_only(print)("This run continues in a new folder, with the options of the Trainer that are given now.")
    try:
        return Restored(path, checkpoint, folder, json.dumps(config), trusted)
    except TypeError as error:  # a tensor among the settings
        raise UserError(f"{path} was not saved by mnist-lit: its settings are not plain values.") from error


def _is_reference(path: Path) -> bool:
    """Whether a checkpoint belongs to the tracked reference runs, of this checkout or of another."""
    return any((folder.name, folder.parent.name) == ("reference", LOGS) for folder in path.resolve().parents)


def _read_config(path: Path) -> dict[str, Any]:
    config = read_recipe(path)
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a recipe: it must map options to values.")
    return config


def _continue_logs(given: Any, run_folder: Path, step: int) -> None:
    """Let the loggers in a run's options write to its folder again, from a step on, instead of to a new folder."""
    loggers = given if isinstance(given, list) else [given]
    for number, logger in enumerate(logger for logger in loggers if isinstance(logger, dict)):
        if str(logger.get("class_path")).endswith((".CSVLogger", ".TensorBoardLogger")):
            options = logger["init_args"] = _mapping(logger.get("init_args"))
            if number == 0:  # the folder of the first logger is the run's
                options |= {"save_dir": str(run_folder.parent), "name": ""}
            options["version"] = run_folder.name
            if str(logger["class_path"]).endswith(".TensorBoardLogger"):
                logger["dict_kwargs"] = _mapping(logger.get("dict_kwargs")) | {"purge_step": step}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def changed_options(original: Namespace, options: Namespace, checkpoint: dict[str, Any]) -> list[str]:
    """Names of the model's options, and of the data options in the checkpoint, that differ from those of its run."""
    names = [f"model.{name}" for name in vars(options.model)]
    names += [f"data.{name}" for name in sorted({*settings(checkpoint)["data"], "folds", "fold"})]
    return [name for name in names if original[name] != options[name]]


def check_changes(command: str, original: Namespace, options: Namespace, changed: list[str]) -> None:
    """Check that a run is resumed with its own options, and not measured on images that it was trained on.

    Raises:
        UserError: An option must not be changed.
    """
    if command == "fit" and changed:
        raise UserError(
            f"{options.ckpt_path} was trained with another --{changed[0]}, and a resumed run cannot change it: leave "
            "it out, or start a new run without --ckpt_path."
        )
    split = {"data.source", "data.val_size", "data.folds", "data.fold"} & set(changed)
    if split and (command == "validate" or (original.data.source, options.data.source) == ("mnist", "sample")):
        raise UserError(
            f"With another --{min(split)}, {command} would measure on images that {options.ckpt_path} was trained on."
        )


def check_unfinished(options: Namespace, checkpoint: dict[str, Any]) -> None:
    """Check that a run to resume has epochs, steps and time left; Lightning (2.6.6) would add to its log and end.

    Raises:
        FinishedError: It has none left.
        UserError: The checkpoint does not contain their number.
    """
    try:
        epochs = int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
        time_s = float(checkpoint.get("callbacks", {}).get("Timer", {}).get("time_elapsed", {}).get("train", 0))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{options.ckpt_path} cannot be resumed: it does not contain its progress.") from error
    trainer = options.trainer
    if trainer.max_time is not None and duration_s(trainer.max_time) <= time_s:
        raise FinishedError(f"{options.ckpt_path}: the time of this run is over: give a larger --trainer.max_time.")
    for unit, done, wanted in (
        ("steps", checkpoint["global_step"], trainer.max_steps),
        ("epochs", epochs, trainer.max_epochs),
    ):
        if wanted is not None and 0 < wanted <= done:
            longer = f"give a larger --trainer.max_{unit}"
            if options.model.schedule == "one_cycle":  # its learning rate has reached its end
                longer = "start a new run with more of them, without --ckpt_path"
            raise FinishedError(
                f"{options.ckpt_path}: all {done} {unit} of this run are done; to train longer, {longer}."
            )
