"""`mnist-lit compare`: train several recipes, measure them, and report their results side by side."""

import argparse
import contextlib
import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from mnist_lit import UserError
from mnist_lit.experiments.folds import write_folds_report
from mnist_lit.experiments.plans import plan_folder, resume_hint
from mnist_lit.experiments.recipes import resolve
from mnist_lit.experiments.report import write_report
from mnist_lit.experiments.runs import Outcome, Run, report_outcome, train_and_measure
from mnist_lit.experiments.together import check_recipes, run_together
from mnist_lit.extras import require


def main(options: argparse.Namespace) -> None:
    """Run `mnist-lit compare`."""
    if options.ray and options.together:
        raise UserError("--ray and --together exclude each other: leave one out.")
    configs = options.names or ["ds_cnn_v1", "ds_cnn_v2", "ds_cnn_v3"]
    flags = options.flags
    folds: Sequence[int | None] = [None]
    if options.folds:
        flags = [*flags, "--data.val_size=null", f"--data.folds={options.folds}"]
        folds = range(options.folds)
    changes = map(split_change, options.change)
    recipes = resolve(configs, flags, changes, with_test=not options.folds)
    runs = [Run(recipe, seed, fold) for recipe in recipes for seed in recipe.seeds(options.seeds) for fold in folds]
    run_all = run_in_sequence
    session: AbstractContextManager[None] = contextlib.nullcontext()
    if options.ray:
        require("compare --ray", "ray", "ray")
        from mnist_lit.experiments.ray_runs import ray_session, run_in_parallel

        run_all, session = run_in_parallel, ray_session()
    if options.together:
        check_recipes(recipes)
        run_all = run_together
    with session:
        plan = {"recipes": {recipe.name: recipe.options for recipe in recipes}}
        folder = plan_folder("compare", options, recipes[0], plan)
        with resume_hint():
            outcomes = run_all(folder, runs)
    results = [outcome for outcome in outcomes if not isinstance(outcome, UserError)]
    if results and options.folds:
        write_folds_report(folder, results, options.seeds * options.folds)
    elif results:
        write_report(folder, results)
    failed = len(runs) - len(results)
    if failed:
        print(f"{failed} of {len(runs)} runs failed. To retry them, run the same command with --resume.")
        raise SystemExit(1)


def split_change(change: str) -> list[str]:
    """Split the value of `--change` into its parts, OPTION=VALUE.

    Raises:
        UserError: A part has another form.
    """
    try:
        parts = [part.lstrip("-") for part in shlex.split(change)]
    except ValueError:
        parts = []
    if not parts or not all("=" in part for part in parts):
        raise UserError(f"--change '{change}': give OPTION=VALUE, or several in quotes; lists without spaces.")
    return parts


def run_in_sequence(folder: Path, runs: list[Run]) -> list[Outcome]:
    """Train and measure the runs one after the other; a run that fails does not stop the others."""
    outcomes: list[Outcome] = []
    for number, run in enumerate(runs, start=1):
        print(f"\n{run} (run {number} of {len(runs)})")
        try:
            outcomes.append(train_and_measure(folder, run))
        except UserError as error:
            outcomes.append(error)
        report_outcome(run, outcomes[-1])
    return outcomes
