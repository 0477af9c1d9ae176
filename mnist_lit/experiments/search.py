"""Search for a better recipe: Optuna proposes options, and the validation split judges them."""

import argparse
import json
import math
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mnist_lit import UserError, files
from mnist_lit.callbacks.checkpointing import DivergedError
from mnist_lit.checkpoints.io import LOGS
from mnist_lit.experiments.recipes import begin, resolve
from mnist_lit.experiments.report import describe_environment, markdown
from mnist_lit.run.lightning_cli import run

try:
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
        distribution_to_json,
    )
    from optuna.storages.journal import JournalFileBackend
except ModuleNotFoundError as error:
    raise UserError("mnist-lit search needs Optuna: uv run --extra search mnist-lit search ...") from error

FIXED = ("seed_everything", "data.source", "data.val_size", "data.watch_test")
"""Options that may not be varied, for then trials would not be measured on the same images, or with their own seeds."""


def main(options: argparse.Namespace) -> None:
    """Run `mnist-lit search` with its options.

    Raises:
        UserError: The recipe or what is to be varied cannot be run, or there is nothing to resume.
    """
    if len(options.names) != 1 or any(flag.partition("=")[0] in ("-c", "--config") for flag in options.flags):
        raise UserError("Name the recipe first, without --config: mnist-lit search CONFIG --vary OPTION=VALUES ...")
    space = dict(map(parse, options.vary))
    if len(space) < len(options.vary):
        raise UserError("--vary names an option twice.")
    # the ends of what is tried are built too, so that a mistake is told before any run
    changes = [[f"{option}={_write(value)}"] for option, values in space.items() for value in _extremes(values)]
    given, recipe = next(iter(resolve(options.names, options.flags, changes).values()))
    if recipe["data"]["watch_test"]:
        raise UserError("A search does not read the test set: leave out --data.watch_test.")
    plan = {
        "begun_with": shlex.join(["mnist-lit", "search", *(arg for arg in options.given if arg != "--resume")]),
        "seeds": options.seeds,
        "space": {option: distribution_to_json(values) for option, values in space.items()},
        "recipe": recipe,
    }
    folder = begin(Path(recipe["trainer"]["default_root_dir"] or ".") / LOGS / "search", plan, options.resume)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log")))
    study = optuna.create_study(storage=journal, study_name="search", load_if_exists=True)
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))  # so that what goes on proposes anew
    seeds = range(recipe["seed_everything"], recipe["seed_everything"] + options.seeds)
    while (done := len(_complete(study))) < options.trials:
        trial = study.ask(space)
        proposed = [f"--{option}={_write(value)}" for option, value in trial.params.items()]
        print(f"\nTrial {trial.number} ({done + 1} of {options.trials}): {' '.join(proposed)}")
        study.tell(trial, _measure(trial, folder / f"trial_{trial.number}", [*given, *proposed], seeds))
    text = table(study)
    files.write(folder / "search.md", text.encode())
    print(f"\n{text}\n{folder}: search.md, study.log")


def _measure(trial: optuna.Trial, folder: Path, recipe: list[str], seeds: range) -> float:
    """The validation cross-entropy of a recipe after its last epoch, mean over the seeds; infinite if it diverges."""
    losses, accuracies = [], []
    for seed in seeds:
        given = ["--trainer.enable_model_summary=false", *recipe, f"--seed_everything={seed}"]
        try:
            fit = run(["fit", *given], folder / f"seed_{seed}")
        except DivergedError as error:
            print(error)
            trial.set_user_attr("accuracy", math.nan)
            return math.inf
        losses.append(fit.trainer.callback_metrics["val/loss"].item())
        accuracies.append(fit.trainer.callback_metrics["val/accuracy"].item())
    trial.set_user_attr("accuracy", statistics.mean(accuracies))
    trial.set_user_attr("environment", describe_environment(fit.trainer.strategy.root_device))
    loss = statistics.mean(losses)
    return math.inf if math.isnan(loss) else loss


def table(study: optuna.Study) -> str:
    """The trials as a Markdown table, the one with the lowest cross-entropy first."""
    trials = sorted(_complete(study), key=lambda trial: trial.values)
    names = list(trials[0].params)
    rows = [["trial", *names, "validation cross-entropy", "validation %"]]
    for trial in trials:
        values = [trial.params[name] for name in names]
        shown = [f"{value:.4g}" if isinstance(value, float) else _write(value) for value in values]
        rows.append([str(trial.number), *shown, f"{trial.value:.4f}", f"{100 * trial.user_attrs['accuracy']:.2f}"])
    environments = [trial.user_attrs.get("environment", "") for trial in trials]  # none of one that diverged
    return f"{markdown(rows)}\n{max(environments, key=bool)}\n"


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=[optuna.trial.TrialState.COMPLETE])


def parse(text: str) -> tuple[str, BaseDistribution]:
    """The option and its values, of OPTION=VALUES.

    Raises:
        UserError: The option may not be varied, or the values are neither a list nor a range.
    """
    option, _, written = text.partition("=")
    option = option.lstrip("-")
    if option in FIXED:
        raise UserError(f"--vary {option}: trials must differ in nothing that they are measured with.")
    try:
        values = yaml.safe_load(written)
        if isinstance(values, list):
            return option, CategoricalDistribution(values)
        # YAML 1.1 takes 1e-3 for a text
        values = {key: float(value) if isinstance(value, str) else value for key, value in values.items()}
        whole = all(isinstance(values[end], int) for end in ("low", "high"))
        return option, (IntDistribution if whole else FloatDistribution)(**values)
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"--vary {text}: give a list such as model.image_size=[16,18], or a range such as "
            "'model.lr={low: 0.005, high: 0.05, log: true}'."
        ) from error


def _extremes(values: BaseDistribution) -> Sequence[Any]:
    """All choices of a list, or the ends of a range."""
    if isinstance(values, CategoricalDistribution):
        return values.choices
    assert isinstance(values, IntDistribution | FloatDistribution)
    return [values.low, values.high]


def _write(value: Any) -> str:
    """The value as it is written on a command line."""
    return value if isinstance(value, str) else json.dumps(value)
