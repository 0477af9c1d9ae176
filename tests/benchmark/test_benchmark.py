import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from helpers.commands import SMALL
from lightning.pytorch import Trainer
from torch import Tensor, nn

from mnist_lit import UserError, commands
from mnist_lit.backbones import DS_CNN_V1
from mnist_lit.benchmark import measure, report
from mnist_lit.benchmark.baselines import PerSampleDataset, TutorialModule, plain_loop, published_network
from mnist_lit.benchmark.timing import TURN, EpochTimer
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.batches import DigitDataset
from mnist_lit.preprocess import MEAN, STD

TRACKED = Path(__file__).parents[2] / "lightning_logs/reference/benchmark/benchmark.json"
FLAGS = ["--config", str(Path(__file__).parents[2] / "configs/ds_cnn_v1.yaml"), "--data.val_size=50"]
FLAGS += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


class FakeClock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def plain_loop(self, trainer: Trainer) -> Iterator[None]:
        """Steps of two seconds."""
        while True:
            self.seconds += 2
            yield


class Recorder(nn.Module):
    """A backbone that records its inputs, in all its copies together."""

    inputs: ClassVar[list[Tensor]] = []

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(18 * 18, 10)

    def forward(self, images: Tensor) -> Tensor:
        self.inputs.append(images)
        logits: Tensor = self.head(images.flatten(1))
        return logits


def test_epoch_lasts_until_the_next_without_validation_and_plain_loop() -> None:
    clock = FakeClock()
    timer = EpochTimer(clock.plain_loop, clock)
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    model = TutorialModule(nn.Identity())
    trainer.fit_loop.max_batches = 2 * TURN + 5
    timer.on_validation_start(trainer, model)  # the sanity check
    clock.seconds += 50
    timer.on_validation_end(trainer, model)
    for step_s in (3, 4):
        timer.on_train_epoch_start(trainer, model)
        for step in range(2 * TURN + 5):
            clock.seconds += step_s
            timer.on_train_batch_end(trainer, model, None, None, step)
        for validation_s in (20, 3):
            timer.on_validation_start(trainer, model)
            clock.seconds += validation_s
            timer.on_validation_end(trainer, model)
        clock.seconds += 1  # a checkpoint is saved
    timer.on_train_end(trainer, model)
    assert timer.epochs == [
        {"fit": step_s * (2 * TURN + 5) + 1, "validation": 23, "plain": 2 * (2 * TURN + 5)} for step_s in (3, 4)
    ]


def test_plain_loop_trains_on_raw_and_on_prepared_images_alike() -> None:
    model = DigitClassifier(Recorder(), image_size=18, deskew=True)
    raw = torch.randint(0, 256, (250, 1, 28, 28), dtype=torch.uint8)
    prepared = model.preprocess.prepare(raw)
    inputs = []
    for images in (raw, prepared):
        data = SimpleNamespace(splits={"train": DigitDataset(images, torch.arange(250) % 10)}, batch_size=100)
        trainer: Any = SimpleNamespace(lightning_module=model, datamodule=data, num_training_batches=3)
        torch.manual_seed(0)
        steps = plain_loop(trainer)
        for _ in range(4):
            next(steps)
        inputs.append(list(Recorder.inputs))
        Recorder.inputs.clear()
    assert [len(batch) for batch in inputs[0]] == [100, 100, 50, 100]
    for ours, theirs in zip(*inputs, strict=True):
        torch.testing.assert_close(ours, theirs)
    epoch = torch.cat(inputs[0][:3]).sum(dim=(1, 2, 3)).sort().values
    torch.testing.assert_close(epoch, ((prepared - MEAN) / STD).sum(dim=(1, 2, 3)).sort().values)


def test_published_network_computes_the_same_as_the_backbone() -> None:
    theirs, ours = published_network(DS_CNN_V1.widths, dropout=(0.1, 0.2)).eval(), DS_CNN_V1().eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(4, 1, 28, 28)
    torch.testing.assert_close(ours(images), theirs(images))


def test_per_sample_dataset_normalizes_and_augments() -> None:
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    data = DigitDataset(images, torch.tensor([3, 1, 4]))
    image, label = PerSampleDataset(data, augment=False)[1]
    assert label == 1
    torch.testing.assert_close(image, (images[1] / 255 - MEAN) / STD)
    assert not torch.equal(PerSampleDataset(data, augment=True)[1][0], image)


def test_table_shows_the_tracked_results() -> None:
    table = report.table(json.loads(TRACKED.read_text()))
    lines = [" ".join(line.split()) for line in table.splitlines()]
    speeds = "4,813 (4,572 to 5,054) | 6,756 (6,538 to 6,973) | 0.71 (0.70 to 0.72) | 0.32 (0.26 to 0.39)"
    assert f"| 32 | {speeds} |" in lines
    assert "| fit, 28 px / published, ratio | 2.4 (2.0 to 2.9) |" in lines
    assert "| fast | 4 | 16.4 | 10.6 (27.0) | 22.5 (38.9) | - | 22.6 (39.0) | 1.03 |" in lines
    assert "two" not in table  # parts of earlier versions


def test_table_shows_missing_figures_as_a_dash() -> None:
    fit = {"recipe": "fast", "first_step_s": 10, "fit_s": 40, "epochs": 2, "reached_s": {"97.49": 20}}
    table = report.table({"recipes": [fit | {"peak_memory_gb": None}], "environments": {}})
    assert "| fast | 2 | 10.0 | 20.0 (30.0) | - | - | 40.0 (50.0) | - |" in " ".join(table.split())


def test_results_of_other_parts_are_preserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tracked = json.loads(TRACKED.read_text())
    calls = []

    def overhead(flags: list[str], rounds: int) -> Any:
        calls.append((flags, rounds))
        return tracked["overhead"]

    parts = {"overhead": overhead, "recipes": lambda *_: tracked["recipes"]}
    flags = ["--config=my.yaml", "--config", "gpu", "--rounds=2", "--data.source=sample"]
    measure.main(commands.parse("benchmark", ["overhead", *flags]), parts)
    measure.main(commands.parse("benchmark", ["recipes", *flags]), parts)
    assert calls == [(["--config=my.yaml", "--config=gpu", "--data.source=sample"], 2)]
    result = json.loads(Path("lightning_logs/benchmark/benchmark.json").read_text())
    environment = result["environments"]["overhead"]
    assert result == {key: tracked[key] for key in parts} | {"environments": dict.fromkeys(parts, environment)}
    assert Path("lightning_logs/benchmark/benchmark.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["speed"], "no part 'speed'; choose from overhead, others, recipes, graphs"),
        (["graphs"], "needs a GPU"),
        (["--ckpt_path", "last"], "leave out --ckpt_path"),
        (["overhead", "--trainer.devices=2"], "leave out --trainer.devices"),
    ],
)
def test_unsuitable_arguments_are_refused(line: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        measure.main(commands.parse("benchmark", line))


@pytest.mark.slow
@pytest.mark.usefixtures("main")
def test_overhead_and_others_measure_real_runs() -> None:
    rows = measure.overhead(FLAGS, rounds=2, batch_sizes=(32, 50))
    assert [(row["model"], row["image_size"], row["batch_size"]) for row in rows] == [
        ("DS_CNN_V1", 18, 32),
        ("DS_CNN_V1", 18, 50),
    ]
    for row in rows:
        assert 0 < row["ratio"]["min"] <= row["ratio"]["median"] <= row["ratio"]["max"]
        assert row["fit_images_per_s"]["min"] > 0
        assert row["validation_s"]["min"] > 0
    others = measure.others(FLAGS, rounds=1, batches=2)
    ways = {"fit, recipe", "fit, 28 px", "plain loop, recipe", "plain loop, 28 px", "per-sample loader", "published"}
    assert set(others["images_per_s"]) == ways
    table = report.table({"overhead": rows, "others": others, "environments": {}})
    assert all(f"| {way} " in table for way in ways)
    assert sorted(path.name for path in Path().iterdir()) == ["data"]


@pytest.mark.slow
@pytest.mark.usefixtures("main")
def test_recipes_measures_whole_fits() -> None:
    flags = ["--config=other.yaml", "--data.source=sample", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    (row,) = measure.recipes(flags, 1, configs=[("ds_cnn_v2", "fast")])
    assert (row["recipe"], row["epochs"]) == ("ds_cnn_v2 fast", 1)
    assert row["first_step_s"] > 1
    assert row["fit_s"] > 0
    assert 0.3 < row["peak_memory_gb"] < 4
    assert "| ds_cnn_v2 fast | 1 " in report.table({"recipes": [row], "environments": {}})


@pytest.mark.slow
@pytest.mark.usefixtures("main")
def test_graphs_compares_speeds_and_weights(capsys: pytest.CaptureFixture[str]) -> None:
    part = measure.graphs(SMALL, rounds=1, batch_sizes=(50,))
    assert "CUDA graphs are not used: the run is not on a GPU." in capsys.readouterr().out
    assert part["equal"] == {"repeated": True, "resumed": True, "without graphs": True}
    assert "| 50 " in (table := report.table({"graphs": part, "environments": {}}))
    assert "repeated: yes, resumed: yes, without graphs: yes" in table
    assert not measure.equal_weights(SMALL, [*SMALL, "--model.lr=0.001"])["without graphs"]
