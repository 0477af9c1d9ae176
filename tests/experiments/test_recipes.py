from pathlib import Path

import pytest

from mnist_lit import UserError
from mnist_lit.experiments.recipes import resolve

FLAGS = ["--data.source=sample", "--trainer.accelerator=cpu", "--model.lr=0.5"]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "small.yaml"
    path.write_text("{model: {backbone: DS_CNN_V2, image_size: 16, lr: 0.03}, seed_everything: 7}")
    return str(path)


def test_changes_override_flags_and_flags_override_recipes(recipe: str) -> None:
    plain, changed = resolve([recipe], FLAGS, [["model.image_size=8", "model.lr=0.1"]])
    assert plain.name == "small"
    assert changed.name == "small, model.image_size=8, model.lr=0.1"
    assert [(one.options["model"]["image_size"], one.options["model"]["lr"]) for one in (plain, changed)] == [
        (16, 0.5),
        (8, 0.1),
    ]
    assert changed.options["trainer"]["max_epochs"] == 15  # a default
    assert list(changed.seeds(3)) == [7, 8, 9]


def test_misspelled_change_is_an_error(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        resolve([recipe], FLAGS, [["model.deskw=false"]])
    assert "model.deskw" in capsys.readouterr().err


def test_names_must_be_unique_and_short_enough_for_folders(recipe: str) -> None:
    with pytest.raises(UserError, match="Two recipes are named small"):
        resolve([recipe, recipe], FLAGS, [])
    with pytest.raises(UserError, match="too many changes"):
        resolve([recipe], FLAGS, [["model.lr=0.01"] * 15])


def test_seed_must_be_a_number(recipe: str) -> None:
    with pytest.raises(UserError, match="--seed_everything true"):
        resolve([recipe], [*FLAGS, "--seed_everything=true"], [])
