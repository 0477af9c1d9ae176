import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Main = Callable[[str], None]
FOLDER = Path("lightning_logs/search/version_0")
SEARCH = "search recipe.yaml --vary 'model.lr={low: 0.001, high: 0.03, log: true}' --vary 'model.deskew=[true, false]'"


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: {backbone: {class_path: mnist_lit.backbones.DS_CNN_V2}, image_size: 8}\n"
    )


def rows() -> list[list[str]]:
    lines = (FOLDER / "search.md").read_text().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_what_was_tried_is_ranked_by_validation_and_goes_on(main: Main) -> None:
    main(f"{SEARCH} --trials 1 --seeds 2 --trainer.max_epochs=1")
    tried = rows()
    assert [row[0] for row in tried] == ["0"]
    main(f"{SEARCH} --trials 2 --seeds 2 --trainer.max_epochs=1 --resume")
    ranked = rows()
    assert [row for row in ranked if row in tried] == tried
    assert len({tuple(row[1:3]) for row in ranked}) == 2  # and proposes anew
    losses = [float(row[3]) for row in ranked]
    assert losses == sorted(losses)
    best = ranked[0]
    runs = [EventAccumulator(str(FOLDER / f"trial_{best[0]}/seed_{seed}")).Reload() for seed in (42, 43)]
    for column, tag, unit in ((3, "val/loss", 1), (4, "val/accuracy", 100)):
        told = sum(run.Scalars(tag)[-1].value for run in runs) / 2 * unit
        assert float(best[column]) == pytest.approx(told, abs=0.006)
    assert not [tag for run in runs for tag in run.Tags()["scalars"] if tag.startswith("test")]
    config = yaml.safe_load((FOLDER / f"trial_{best[0]}/seed_42/config.yaml").read_text())["model"]
    assert config["lr"] == pytest.approx(float(best[1]), rel=1e-3)
    assert (json.dumps(config["deskew"]), config["image_size"]) == (best[2], 8)
    with pytest.raises(SystemExit, match="was begun by `mnist-lit search"):
        main(f"{SEARCH} --trials 2 --resume")


def test_a_trial_that_diverges_is_ranked_last(main: Main) -> None:
    main("search recipe.yaml --vary 'model.lr=[1.0e+30, 0.01]' --trials 4 --trainer.max_epochs=1")
    ranked = rows()
    assert ranked[0][1] == "0.01"
    assert ranked[-1][1:] == ["1e+30", "inf", "nan"]
