import contextlib
import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml
from helpers.commands import SMALL, WATCH_TEST, Main, error_line
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_lit import UserError, cli
from mnist_lit.experiments.search import parse_vary

FOLDER = Path("lightning_logs/search/version_0")
SEARCH = "search recipe.yaml --vary 'model.lr=[1.0e+30, 0.01]' --vary 'model.deskew=[true, false]' --seeds 2"


def write_recipe(folder: Path) -> None:
    recipe = "model: {backbone: {class_path: mnist_lit.backbones.DS_CNN_V2}, image_size: 8}\n"
    (folder / "recipe.yaml").write_text(recipe)


def rows(folder: Path) -> list[list[str]]:
    lines = (folder / FOLDER / "search.md").read_text().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


@pytest.fixture(scope="module")
def finished(tiny_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a finished search, in which trials with one of two learning rates diverge."""
    folder = tmp_path_factory.mktemp("search")
    (folder / "data").symlink_to(tiny_mnist)
    write_recipe(folder)
    with contextlib.chdir(folder):
        cli.main([*shlex.split(f"{SEARCH} --trials 3"), *SMALL, "--trainer.max_epochs=1"])
    return folder


def test_trials_are_ranked_by_loss_and_those_that_diverge_are_last(finished: Path) -> None:
    assert sorted(row[0] for row in rows(finished)) == ["0", "1", "2"]
    losses = [float(row[3]) for row in rows(finished)]
    assert losses == sorted(losses)
    assert rows(finished)[0][1] == "0.01"
    assert rows(finished)[-1][1] == "1e+30"
    assert rows(finished)[-1][3:] == ["inf", "nan"]


def test_trial_is_the_mean_of_runs_with_the_proposed_options(finished: Path) -> None:
    number, _, deskew, *metrics = rows(finished)[0]
    folders = [finished / FOLDER / f"trial_{number}/seed_{seed}" for seed in (42, 43)]
    events = [EventAccumulator(str(folder)).Reload() for folder in folders]
    for shown, tag, unit in zip(metrics, ("loss/val", "accuracy/val"), (1, 100), strict=True):
        mean = sum(run.Scalars(tag)[-1].value for run in events) / 2 * unit
        assert float(shown) == pytest.approx(mean, abs=0.006)
    model = yaml.safe_load((folders[0] / "config.yaml").read_text())["model"]
    assert (model["lr"], json.dumps(model["deskew"]), model["image_size"]) == (0.01, deskew, 8)


def test_search_never_reads_the_test_set(finished: Path) -> None:
    for folder in finished.glob(f"{FOLDER}/trial_*/seed_*"):
        assert not [tag for tag in EventAccumulator(str(folder)).Reload().Tags()["scalars"] if "test" in tag]


def test_search_rejects_watch_test(main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_recipe(tmp_path)
    line = f"search recipe.yaml --vary model.lr=[0.01] {WATCH_TEST}"
    assert "does not read the test set" in error_line(main, line, capsys)
    assert not Path("lightning_logs").exists()


def test_resumed_search_adds_trials(finished: Path, main: Main, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, ignore=shutil.ignore_patterns("data"), dirs_exist_ok=True)
    main(f"{SEARCH} --trials 4 --trainer.max_epochs=1 --resume")
    (new,) = [row for row in rows(tmp_path) if row not in rows(finished)]
    assert new[0] == "3"
    assert [row for row in rows(tmp_path) if row != new] == rows(finished)


@pytest.mark.parametrize(
    ("values", "distribution"),
    [
        ("[16, x]", CategoricalDistribution([16, "x"])),
        ("{low: 1, high: 3}", IntDistribution(1, 3)),
        ("{low: 0.0, high: 1.0}", FloatDistribution(0, 1)),
        ("{low: 1e-3, high: 0.1, log: true}", FloatDistribution(0.001, 0.1, log=True)),
    ],
)
def test_vary_takes_a_list_or_a_range(values: str, distribution: BaseDistribution) -> None:
    assert parse_vary(f"model.x={values}") == ("model.x", distribution)


@pytest.mark.parametrize("vary", ["seed_everything=[1, 2]", "data.val_size=[1, 2]", "watch_test=[true, false]"])
def test_options_that_change_the_measurement_cannot_be_varied(vary: str) -> None:
    with pytest.raises(UserError, match="this option must be the same in all trials"):
        parse_vary(vary)
