"""`mnist-lit search`: train a recipe with options proposed by Optuna, ranked by the loss on the validation split."""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend

from mnist_lit import UserError, files
from mnist_lit.callbacks.divergence import DivergedError
from mnist_lit.describe import describe_environment, markdown_table
from mnist_lit.experiments.plans import plan_folder, resume_hint
from mnist_lit.experiments.recipes import resolve
from mnist_lit.run.lightning_cli import run

Distribution = CategoricalDistribution | IntDistribution | FloatDistribution

FIXED = ("seed_everything", "data.source", "data.val_size", "data.folds", "data.fold", "watch_test")
"""Options that cannot be varied: all trials must use the same seeds and the same validation images."""


def main(options: argparse.Namespace) -> None:
    """Run `mnist-lit search`.

    Raises:
        UserError: An option is wrong, or a trial cannot run.
    """
    if len(options.names) != 1:
        raise UserError("Name the recipe first, without --config: mnist-lit search CONFIG --vary OPTION=VALUES ...")
    space: dict[str, Any] = dict(map(parse_vary, options.vary))
    if len(space) < len(options.vary):
        raise UserError("--vary names an option twice.")
    extremes = {
        option: values.choices if isinstance(values, CategoricalDistribution) else (values.low, values.high)
        for option, values in space.items()
    }
    # resolving the extreme values too reports invalid ones before the first run
    changes = [[f"{option}={_to_text(value)}"] for option, values in extremes.items() for value in values]
    recipe = resolve(options.names, options.flags, changes, with_test=False)[0]
    plan = {
        "space": {option: optuna.distributions.distribution_to_json(values) for option, values in space.items()},
        "recipe": recipe.options,
    }
    folder = plan_folder("search", options, recipe, plan)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log")))
    study = optuna.create_study(storage=storage, study_name="search", load_if_exists=True)
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))  # a resumed search must not repeat proposals
    with resume_hint():
        while (finished := len(_finished(study))) < options.trials:
            trial = study.ask(space)
            proposed = [f"--{option}={_to_text(value)}" for option, value in trial.params.items()]
            print(f"\nTrial {trial.number} ({finished + 1} of {options.trials}): {' '.join(proposed)}")
            args = ["--trainer.enable_model_summary=false", *recipe.args, *proposed]
            loss = _validation_loss(trial, folder / f"trial_{trial.number}", args, recipe.seeds(options.seeds))
            study.tell(trial, loss)
    text = table(study)
    files.write_atomically(folder / "search.md", text.encode())
    print(f"\n{text}\n{folder}: search.md, study.log")


def _validation_loss(trial: optuna.Trial, folder: Path, args: list[str], seeds: range) -> float:
    """Train with each seed and return the mean validation loss after the last epoch; infinite if a run diverges.

    Also saves the mean validation accuracy and the environment in the trial.
    """
    metrics = []
    for seed in seeds:
        try:
            fit = run(["fit", *args, f"--seed_everything={seed}"], folder / f"seed_{seed}")
        except DivergedError as error:
            print(error)
            trial.set_user_attr("accuracy", math.nan)
            return math.inf
        metrics.append(fit.trainer.callback_metrics)
    trial.set_user_attr("accuracy", statistics.mean(metric["accuracy/val"].item() for metric in metrics))
    trial.set_user_attr("environment", describe_environment(fit.trainer.strategy.root_device))
    loss = statistics.mean(metric["loss/val"].item() for metric in metrics)
    return math.inf if math.isnan(loss) else loss


def table(study: optuna.Study) -> str:
    """Markdown table of the finished trials, sorted by validation loss, and the environment."""
    trials = sorted(_finished(study), key=lambda trial: trial.values)
    names = list(trials[0].params)
    rows = [["trial", *names, "validation cross-entropy", "validation %"]]
    for trial in trials:
        values = [trial.params[name] for name in names]
        shown = [f"{value:.4g}" if isinstance(value, float) else _to_text(value) for value in values]
        rows.append([str(trial.number), *shown, f"{trial.value:.4f}", f"{100 * trial.user_attrs['accuracy']:.2f}"])
    environments = (trial.user_attrs.get("environment") for trial in trials)  # trials that diverge have none
    return f"{markdown_table(rows)}\n{next(filter(None, environments), '')}\n"


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=[optuna.trial.TrialState.COMPLETE])


def parse_vary(text: str) -> tuple[str, Distribution]:
    """Parse the value of `--vary`, OPTION=VALUES, into the option and the distribution of its values.

    Raises:
        UserError: The option cannot be varied, or the values are neither a list nor a range.
    """
    option, _, written = text.partition("=")
    option = option.lstrip("-")
    if option in FIXED:
        raise UserError(f"--vary {option}: this option must be the same in all trials.")
    try:
        values = yaml.safe_load(written)
        if isinstance(values, list):
            return option, CategoricalDistribution(values)
        # YAML 1.1 reads 1e-3 as a string
        values = {key: float(value) if isinstance(value, str) else value for key, value in values.items()}
        are_integers = all(isinstance(values[end], int) for end in ("low", "high"))
        return option, (IntDistribution if are_integers else FloatDistribution)(**values)
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"--vary {text}: give a list such as model.image_size=[16,18], or a range such as "
            "'model.lr={low: 0.005, high: 0.05, log: true}'."
        ) from error


def _to_text(value: Any) -> str:
    """Write a value as on the command line."""
    return value if isinstance(value, str) else json.dumps(value)
