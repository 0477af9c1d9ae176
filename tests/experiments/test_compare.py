import contextlib
import io
import json
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from helpers.commands import SMALL, WATCH_TEST, Main, accuracy, names
from helpers.runs import untimed

from mnist_lit import cli

FOLDER = Path("lightning_logs/compare/version_0")
COMPARE = f"compare good.yaml bad.yaml --seeds 2 {WATCH_TEST}"


class Comparison(NamedTuple):
    root: Path
    out: str
    err: str
    exit_code: Any

    @property
    def folder(self) -> Path:
        return self.root / FOLDER

    @property
    def results(self) -> list[dict[str, Any]]:
        results: list[dict[str, Any]] = json.loads((self.folder / "results.json").read_text())
        return results


def write_recipe(path: Path, lr: float) -> None:
    path.write_text(f"model: {{backbone: {{class_path: mnist_lit.backbones.DS_CNN_V2}}, image_size: 16, lr: {lr}}}\n")


@pytest.fixture(scope="module")
def comparison(tiny_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """A finished comparison of two recipes, of which `bad` diverges."""
    root = tmp_path_factory.mktemp("comparison")
    (root / "data").symlink_to(tiny_mnist)
    write_recipe(root / "good.yaml", 0.03)
    write_recipe(root / "bad.yaml", 1.0e30)
    with (
        contextlib.chdir(root),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        pytest.raises(SystemExit) as end,
    ):
        cli.main([*shlex.split(COMPARE), *SMALL])
    return Comparison(root, out.getvalue(), err.getvalue(), end.value.code)


def test_results_list_each_recipe_and_seed(comparison: Comparison) -> None:
    assert [(result["recipe"], result["seed"]) for result in comparison.results] == [("good", 42), ("good", 43)]
    for result in comparison.results:
        assert (result["model"], result["parameters"], result["epochs"]) == ("DS_CNN_V2", 4_070, 2)
        assert (result["train_images"], result["test_images"]) == (250, 100)


def test_runs_that_fail_do_not_stop_the_others(comparison: Comparison) -> None:
    assert comparison.exit_code == 1
    errors = [line.partition(": The loss became ")[0] for line in comparison.err.splitlines() if "error" in line]
    assert errors == [f"mnist-lit: error: bad, seed {seed}" for seed in (42, 43)]
    assert "2 of 4 runs failed" in comparison.out


def test_report_has_a_table_and_a_plot(comparison: Comparison) -> None:
    table = (comparison.folder / "results.md").read_text()
    assert "test, mean ± sd of 2 seeds" in table.splitlines()[0]
    (row,) = [line for line in table.splitlines() if line.startswith("| DS_CNN")]
    assert row.split("|")[1].strip() == "DS_CNN_V2 (good)"
    assert table in comparison.out
    assert (comparison.folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_test_accuracy_is_that_of_the_last_epoch(
    comparison: Comparison, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    last = comparison.folder / "good/seed_43/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 1
    main(f"test --ckpt_path={last} --trainer.logger=false")
    (result,) = [one for one in comparison.results if (one["recipe"], one["seed"]) == ("good", 43)]
    assert accuracy(capsys.readouterr().out) == pytest.approx(result["test_accuracy"])


def test_resume_repeats_only_unfinished_runs(
    comparison: Comparison, main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ignore = shutil.ignore_patterns("data")
    shutil.copytree(comparison.root, tmp_path, ignore=ignore, dirs_exist_ok=True)
    interrupted = FOLDER / "good/seed_43"
    (interrupted / "result.json").unlink()
    (interrupted / "checkpoints/last.ckpt").write_bytes(b"incomplete")
    finished = {path: path.stat().st_mtime_ns for path in FOLDER.glob("*/*/result.json")}
    with pytest.raises(SystemExit):
        main(f"{COMPARE} --resume")
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert untimed(FOLDER / "results.json") == untimed(comparison.folder / "results.json")
    assert "error: bad, seed 43" in capsys.readouterr().err
    assert names(FOLDER.parent) == ["version_0"]


def test_default_recipes_are_the_three_networks(main: Main) -> None:
    main("compare --trainer.max_epochs=1 --trainer.limit_train_batches=1 --seed_everything=7")
    results = json.loads((FOLDER / "results.json").read_text())
    assert [(result["recipe"], result["seed"]) for result in results] == [(f"ds_cnn_v{n}", 7) for n in (1, 2, 3)]
    assert [result["parameters"] for result in results] == [5_226, 4_070, 6_526]
