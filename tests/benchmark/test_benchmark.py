import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from mnist_lit.backbones import DS_CNN_V1
from mnist_lit.benchmark import loops, measure
from mnist_lit.benchmark.loops import TURN, PerSample, Rounds, TutorialModule, published_network
from mnist_lit.data.batches import DigitDataset

Main = Callable[[str], None]

QUIET = "--data.val_size=50 --trainer.accelerator=cpu --trainer.enable_progress_bar=false"


@pytest.mark.slow
def test_ways_to_train_are_measured(
    main: Main, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "BATCH_SIZES", (32, 50))
    monkeypatch.setattr(measure, "IMAGE_COUNTS", (100, 600))
    monkeypatch.setattr(measure, "TUTORIAL_BATCHES", 3)
    main(f"benchmark overhead others growth --rounds=2 {QUIET}")
    result = json.loads(Path("lightning_logs/benchmark/benchmark.json").read_text())
    rows = result["overhead"]
    assert [(row["model"], row["image_size"], row["batch_size"]) for row in rows] == [
        ("DS_CNN_V1", 18, 32),
        ("DS_CNN_V1", 18, 50),
    ]
    for row in rows:
        assert 0 < row["ratio"]["min"] <= row["ratio"]["median"] <= row["ratio"]["max"]
        assert row["fit_images_per_s"]["min"] > 0
    assert set(result["others"]["images_per_s"]) == {
        *("fit, recipe", "fit, 28 px", "plain loop, recipe", "plain loop, 28 px"),
        *("per-sample loader", "published"),
    }
    # 600 of 250 images, repeated
    assert result["growth"]["600"]["median"] > result["growth"]["100"]["median"]
    printed = capsys.readouterr().out
    assert "| batch | `mnist-lit fit`" in printed
    assert printed.endswith("benchmark.md, benchmark.json, benchmark.png\n")
    assert sorted(path.name for path in Path().iterdir()) == ["data", "lightning_logs"]
    assert sorted(path.name for path in Path("lightning_logs").iterdir()) == ["benchmark"]


@pytest.mark.slow
def test_whole_fits_are_measured(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "RECIPES", ("ds_cnn_v2",))
    sample = "--data.source=sample --trainer.max_epochs=1 --trainer.accelerator=cpu"
    main(f"benchmark recipes {sample}")
    (result,) = [json.loads(path.read_text()) for path in Path("lightning_logs/benchmark").glob("*.json")]
    (row,) = result["recipes"]
    assert (row["model"], row["epochs"]) == ("DS_CNN_V2", 1)
    assert min(row["bare_import_s"], row["first_step_s"]) > 0.1  # which is longer, a cold disk decides
    assert row["fit_s"] > 0
    assert 0.3 < row["peak_memory_gb"] < 4
    assert "| DS_CNN_V2 | 1 " in Path("lightning_logs/benchmark/benchmark.md").read_text()


def test_processes_are_measured_by_their_epochs(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed_fit(flags: list[str], environment: dict[str, str]) -> dict[str, Any]:  # the real one takes half a minute
        assert environment["OMP_NUM_THREADS"] == "1"
        seconds = 10 if "--trainer.devices=1" in flags else 5
        return {"train_images": 500, "validations": [[100 + epoch * seconds, 0.5] for epoch in range(4)]}

    monkeypatch.setattr(measure, "_timed_fit", timed_fit)
    main("benchmark processes --rounds=2")
    table = Path("lightning_logs/benchmark/benchmark.md").read_text()
    row = r"50 \(50 to 50\) +\| 100 \(100 to 100\) +\| 2.00 \(2.00 to 2.00\) +\|"
    assert re.search(rf"\| 128 +\| {row}\n\| 512 +\| {row}", table)


def test_the_published_network_computes_what_ours_does() -> None:
    torch.manual_seed(0)
    theirs, ours = published_network(DS_CNN_V1.widths).eval(), DS_CNN_V1().eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(4, 1, 28, 28)
    torch.testing.assert_close(ours(images), theirs(images))


def test_sample_by_sample_the_images_are_the_same() -> None:
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    data = DigitDataset(images, torch.tensor([3, 1, 4]))
    image, label = PerSample(data, distort=False)[1]
    assert label == 1
    torch.testing.assert_close(image, (images[1] / 255 - 0.1307) / 0.3081)
    assert not torch.equal(PerSample(data, distort=True)[1][0], image)


def test_an_epoch_is_timed_to_its_very_end_without_validation_and_the_plain_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = {"s": 0}
    monkeypatch.setattr(loops, "now", lambda: clock["s"])

    def passes(seconds: int) -> None:
        clock["s"] += seconds

    def plain_steps() -> Iterator[None]:
        while True:
            passes(2)
            yield

    rounds = Rounds()
    rounds.loop = plain_steps()
    trainer, model = Trainer(logger=False, enable_checkpointing=False), TutorialModule(DS_CNN_V1.widths)
    trainer.fit_loop.max_batches = 2 * TURN + 5
    rounds.on_validation_start(trainer, model)  # the rehearsal before the first epoch
    passes(50)
    rounds.on_validation_end(trainer, model)
    for epoch, step_s in enumerate((3, 4)):
        trainer.fit_loop.epoch_progress.current.completed = epoch
        rounds.on_train_epoch_start(trainer, model)
        for step in range(2 * TURN + 5):
            passes(step_s)
            rounds.on_train_batch_end(trainer, model, None, None, step)
        for validation in (20, 3):
            rounds.on_validation_start(trainer, model)
            passes(validation)
            rounds.on_validation_end(trainer, model)
        passes(1)  # what is written at an epoch's end
    rounds.on_train_end(trainer, model)
    assert rounds.fit_s == [3 * (2 * TURN + 5) + 1, 4 * (2 * TURN + 5) + 1]
    assert rounds.plain_s == [2 * (2 * TURN + 5)] * 2
    assert rounds.validation_s == [23, 23]
