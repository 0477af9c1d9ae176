"""Search for a better recipe: Optuna proposes options, and the validation split judges them."""

import json
import shlex
import statistics
from pathlib import Path
from typing import Any

import yaml

from mnist_lit import UserError
from mnist_lit.compare import begin, resolve
from mnist_lit.parser import CommandParser
from mnist_lit.report import describe_environment, markdown
from mnist_lit.runner import LOGS, run

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend
except ModuleNotFoundError as error:
    raise UserError("mnist-lit search needs Optuna: uv run --extra search mnist-lit search ...") from error

DESCRIPTION = """Train a recipe again and again with other values of some of its options, proposed by Optuna (its
tree-structured Parzen estimator), and rank what was tried by the cross-entropy on the validation split, which moves
less by chance than the accuracy does. The test set is not read.

Writes search.md and Optuna's journal, study.log, into lightning_logs/search/version_N, beside the runs."""

EPILOG = """VALUES, as YAML: a list to choose from, or a range with its ends, on a logarithmic scale with log: true.

example:
  mnist-lit search configs/ds_cnn_v2.yaml --vary 'model.image_size=[16, 18, 20]' \\
    --vary 'model.lr={low: 0.005, high: 0.05, log: true}'"""


def main(args: list[str]) -> None:
    """Run `mnist-lit search` with its arguments.

    Raises:
        UserError: The recipe or what is to be varied cannot be run, or there is nothing to resume.
        SystemExit: The arguments are at fault, or ask for help.
    """
    parser = CommandParser(
        "search",
        usage="CONFIG --vary OPTION=VALUES ... [--trials N] [--seeds N] [--resume] [any option of fit]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("config", metavar="CONFIG", help="the recipe, a YAML file")
    parser.add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="OPTION=VALUES",
        help="what to try, such as model.lr=[0.01, 0.02]",
    )
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="proposals to try in all (20)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs a trial, from the recipe's seed up (1)")
    parser.add_argument("--resume", action="store_true", help="go on with the newest such search")
    options, flags = parser.parse_known_args(args)
    if options.trials < 1 or options.seeds < 1:
        raise UserError("--trials and --seeds must be 1 or more.")
    space = dict(map(parse, options.vary))
    # each of the values is tried on the parser, so that a mistake is found before any run
    changes = [
        f"{option}={_write(value)}"
        for option, values in space.items()
        for value in (values if isinstance(values, list) else [values["low"], values["high"]])
    ]
    _, recipe = next(iter(resolve([options.config], flags, map(shlex.quote, dict.fromkeys(changes))).values()))
    plan = {
        "begun_with": shlex.join(["mnist-lit", "search", *(arg for arg in args if arg != "--resume")]),
        "seeds": options.seeds,
        "space": space,
        "recipe": recipe,
    }
    folder = begin(Path(recipe["trainer"]["default_root_dir"] or ".") / LOGS / "search", plan, options.resume)

    def measure(trial: optuna.Trial) -> float:
        """The validation cross-entropy after the last epoch, mean over the seeds, with what is proposed."""
        proposed = [f"--{option}={_write(_propose(trial, option, values))}" for option, values in space.items()]
        print(f"\nTrial {trial.number} of {options.trials}: {' '.join(proposed)}")
        quiet = "--trainer.enable_model_summary=false"
        losses, accuracies = [], []
        for seed in range(recipe["seed_everything"], recipe["seed_everything"] + options.seeds):
            given = [quiet, "--config", options.config, *flags, *proposed, f"--seed_everything={seed}"]
            fit = run(["fit", *given], folder / f"trial_{trial.number}" / f"seed_{seed}")
            losses.append(fit.trainer.callback_metrics["val/loss"].item())
            accuracies.append(fit.trainer.callback_metrics["val/accuracy"].item())
        trial.set_user_attr("accuracy", statistics.mean(accuracies))
        trial.set_user_attr("environment", describe_environment(fit.trainer.strategy.root_device))
        return statistics.mean(losses)

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.log")))
    study = optuna.create_study(storage=journal, study_name="search", load_if_exists=True)
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))  # so that what goes on proposes anew
    left = options.trials - len(_complete(study))
    if left > 0:
        study.optimize(measure, n_trials=left)
    text = table(study)
    (folder / "search.md").write_text(text)
    print(f"\n{text}\n{folder}: search.md, study.log")


def table(study: optuna.Study) -> str:
    """The trials as a Markdown table, the one with the lowest cross-entropy first."""
    trials = sorted(_complete(study), key=lambda trial: trial.value or 0.0)
    rows = [["trial", *trials[0].params, "validation cross-entropy", "validation %"]]
    for trial in trials:
        shown = [f"{value:.4g}" if isinstance(value, float) else _write(value) for value in trial.params.values()]
        rows.append([str(trial.number), *shown, f"{trial.value:.4f}", f"{100 * trial.user_attrs['accuracy']:.2f}"])
    return f"{markdown(rows)}\n{trials[0].user_attrs['environment']}\n"


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=[optuna.trial.TrialState.COMPLETE])


def parse(text: str) -> tuple[str, list[Any] | dict[str, Any]]:
    """The option and its values, of OPTION=VALUES.

    Raises:
        UserError: The values are neither a list nor a range.
    """
    option, _, written = text.partition("=")
    try:
        values = yaml.safe_load(written)
    except yaml.YAMLError:
        values = None
    if isinstance(values, list) and values:
        return option, values
    if isinstance(values, dict) and {"low", "high"} <= values.keys() <= {"low", "high", "log", "step"}:
        low, high = values["low"], values["high"]
        if all(isinstance(end, int | float) for end in (low, high)) and low < high:
            return option, values
    raise UserError(
        f"--vary {text}: give a list such as model.image_size=[16, 18], or a range such as "
        "'model.lr={low: 0.005, high: 0.05, log: true}'."
    )


def _propose(trial: optuna.Trial, option: str, values: list[Any] | dict[str, Any]) -> Any:
    if isinstance(values, list):
        return trial.suggest_categorical(option, values)
    whole = isinstance(values["low"], int) and isinstance(values["high"], int)
    return (trial.suggest_int if whole else trial.suggest_float)(option, **values)


def _write(value: Any) -> str:
    """The value as it is written on a command line."""
    return value if isinstance(value, str) else json.dumps(value)
