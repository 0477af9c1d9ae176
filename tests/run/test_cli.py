"""The commands, through the real `main`."""

import csv
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.commands import accuracy, error, same, weights
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

import mnist_lit
from mnist_lit import cli
from mnist_lit.backbones import DS_CNN_V2
from mnist_lit.callbacks.checkpointing import Keeper
from mnist_lit.callbacks.processes import Together
from mnist_lit.callbacks.record import ProgressBar
from mnist_lit.classifier import DigitClassifier
from mnist_lit.commands import COMMANDS
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.preprocess import Preprocess
from mnist_lit.run.lightning_cli import run
from mnist_lit.run.overhead import HOOKS_OF_A_STEP

Main = Callable[[str], None]
CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
RUN = Path("lightning_logs/ds_cnn_v1/version_0")
LAST = RUN / "checkpoints/last.ckpt"


class Flat(nn.Module):
    """A stranger's network."""

    def __init__(self, pixels: int, dropout: float = 0.5) -> None:
        super().__init__()
        assert dropout == 0.5  # its own default, not that of another network's argument of the same name
        self.linear = nn.Linear(pixels, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


class Conv(nn.Module):
    """A stranger's network that views its features as rows, as many do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.linear = nn.Linear(4 * 14 * 14, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.conv(images).relu().view(len(images), -1))
        return logits


@pytest.mark.parametrize("args", ["--help", "--version", ""])
def test_help_and_version_need_no_torch(args: str) -> None:
    code = f"import sys; from mnist_lit.cli import main; main({args.split()}); assert 'torch' not in sys.modules"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == f"mnist-lit {mnist_lit.__version__}\n" if args == "--version" else "compare" in printed


def test_help_and_mistakes_need_no_torch_where_no_class_has_the_options() -> None:
    quick = [command for command, (module, _) in COMMANDS.items() if module != "mnist_lit.run.lightning_cli"]
    assert len(quick) == 7
    lines = [*([command, "--help"] for command in quick), ["export", "--format=onnx"], ["publish", "a", "b", "--c"]]
    code = "import contextlib, sys\nfrom mnist_lit.cli import main\n"
    code += f"for line in {lines}:\n    with contextlib.suppress(SystemExit):\n        main(line)\n"
    code += "print(sorted({'torch', 'lightning', 'numpy'} & sys.modules.keys()))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.count("usage: ") == len(quick)
    assert ran.stdout.endswith("\n[]\n")
    assert "--ckpt_path" in ran.stderr.splitlines()[0]
    assert "unrecognized arguments: --c;" in ran.stderr.splitlines()[1]


def test_a_completion_script_knows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for shell in ("bash", "zsh"):
        cli.main(["--print_completion", shell])
        assert f"-W '{' '.join(COMMANDS)}' mnist-lit" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="takes bash or zsh"):
        cli.main(["--print_completion", "fish"])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert not end.value.code
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"[Ee]xamples?:? mnist-lit {command}", printed)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
def test_every_recipe_trains(main: Main, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = f"fit --config {config} --data.val_size=50 --data.batch_size=50 --trainer.accelerator=cpu"
    main(f"{fit} --trainer.fast_dev_run=true")
    main(fit)
    named = yaml.safe_load(config.read_text())["model"].get("backbone", {"class_path": "DS_CNN_V1"})
    network = named["class_path"].rpartition(".")[2].lower()
    run = Path("lightning_logs") / network / "version_0"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best.ckpt", "last.ckpt"]
    assert yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] == 42
    record = json.loads((run / "data.json").read_text())["fit"]
    assert record["images"] == {"train": 250, "val": 50}
    assert record["md5"].keys() == {"train-images-idx3-ubyte", "train-labels-idx1-ubyte"}
    printed = capsys.readouterr().out
    assert f"mnist-lit test --ckpt_path {run}/checkpoints/last.ckpt\n" in printed
    assert "tensorboard --logdir lightning_logs\n" in printed


def test_a_checkpoint_of_another_version_is_told(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit --trainer.max_epochs=1")
    checkpoint = torch.load(LAST, weights_only=True)
    checkpoint["hyper_parameters"]["gone"] = 1
    del checkpoint["sealed"]  # as of a version that knew no checksum
    torch.save(checkpoint, LAST)
    assert "another version of mnist-lit, which had --model.gone" in error(main, "test --ckpt_path last", capsys)


@pytest.mark.usefixtures("main")
def test_training_images_are_prepared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[int] = []
    prepare = Preprocess.prepare

    def count(self: Preprocess, images: Tensor) -> Tensor:
        prepared.append(len(images))
        return prepare(self, images)

    monkeypatch.setattr(Preprocess, "prepare", count)
    options = ["--data.val_size=50", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
    fit = run(["fit", "--model.image_size=16", "--model.deskew=true", "--trainer.enable_progress_bar=false", *options])
    # training images once; validation images in two epochs and before; graph and pictures
    assert 250 + 3 * 50 <= sum(prepared) < 250 + 3 * 50 + 50
    assert fit.datamodule.splits["train"].prepared is None  # no other network is given them
    assert not fit.model.is_prepared


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to be found")
def test_a_step_does_not_look_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    network = DS_CNN_V2()
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    network(torch.zeros(1, 1, 16, 16)).sum().backward()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("the optimiser looks for a GPU"))
    optimizer.step()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such settings")
def test_the_memory_of_a_large_batch_is_kept_for_the_next() -> None:
    pages = 48 * 2**20 // resource.getpagesize()
    torch.ones(pages * resource.getpagesize() // 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(pages * resource.getpagesize() // 4)
    fetched = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert fetched < 5 * pages  # else it is twenty times as many


@pytest.mark.usefixtures("main")
def test_a_step_calls_no_hook_that_does_nothing() -> None:
    options = ["--data.val_size=50", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"]
    seen_too = ["--trainer.callbacks+=lightning.pytorch.callbacks.LambdaCallback"]
    seen_too.append(f"--trainer.callbacks.on_train_batch_end={__name__}.seen")
    fit = run(["fit", f"--trainer.callbacks={__name__}.Seen", *seen_too, *options])
    called = {
        (type(callback), hook)
        for callback in fit.trainer.callbacks  # type: ignore[attr-defined]
        for hook in HOOKS_OF_A_STEP
        if callable(getattr(callback, hook))
    }
    assert {(Seen, "on_after_backward"), (ProgressBar, "on_train_batch_end")} <= called
    called -= {(LambdaCallback, "on_train_batch_end")}  # its own, not its class's
    assert all(getattr(kind, hook) is not getattr(Callback, hook) for kind, hook in called)
    assert not {(Keeper, "on_train_batch_end"), (Together, "on_train_batch_end")} & called
    assert Seen.steps == Seen.batches == 2  # 250 images in batches of 128


class Seen(Callback):
    """A user's callback with one hook."""

    steps = 0
    batches = 0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        Seen.steps += 1


def seen(*_: Any) -> None:
    Seen.batches += 1


def test_the_bar_reads_its_figures_now_and_then(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    get_metrics = ProgressBar.get_metrics

    def count(self: ProgressBar, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        read.append(trainer.global_step)
        return get_metrics(self, trainer, pl_module)

    monkeypatch.setattr(ProgressBar, "get_metrics", count)
    main("fit --data.batch_size=2 --trainer.max_epochs=1 --trainer.enable_progress_bar=true")  # 125 steps
    assert 125 in read
    assert len(read) < 60


@pytest.mark.usefixtures("main")
def test_a_reloaded_checkpoint_is_as_accurate_as_the_fit_that_saved_it(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model.image_size=16", "--data.val_size=50", "--data.batch_size=50", "--trainer.accelerator=cpu"]
    fit = run(["fit", *options, "--trainer.max_epochs=4", "--trainer.enable_progress_bar=false"])
    reached = fit.trainer.callback_metrics["val/accuracy"].item()
    capsys.readouterr()
    run(["validate", "--ckpt_path=last"])
    assert accuracy(capsys.readouterr().out) == pytest.approx(reached)
    assert reached > 0.2


def test_testing_needs_no_configuration_and_makes_no_folder(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit --model.backbone=DS_CNN_V2 --model.backbone.dilation=2 --model.image_size=16 --model.deskew=true")
    before = sorted(Path("lightning_logs").rglob("version_*"))
    config = (Path("lightning_logs/ds_cnn_v2/version_0/config.yaml")).read_text()
    main("test --ckpt_path last")
    first = accuracy(capsys.readouterr().out)
    main("test --ckpt_path lightning_logs/ds_cnn_v2/version_0/checkpoints/last.ckpt")
    main("validate --ckpt_path best")
    main("predict --ckpt_path last")
    assert accuracy(capsys.readouterr().out) == first
    assert sorted(Path("lightning_logs").rglob("version_*")) == before
    assert Path("lightning_logs/ds_cnn_v2/version_0/config.yaml").read_text() == config
    assert sorted(path.name for path in Path().iterdir()) == ["data", "lightning_logs"]


def test_predictions_are_the_network_s(main: Main) -> None:
    main("fit")
    main("predict --ckpt_path last")
    with (RUN / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    model = DigitClassifier.load_from_checkpoint(LAST).eval()
    data = MNISTDataModule()
    data.setup("predict")
    probabilities = model(data.splits["test"].images).softmax(1)
    assert [int(row["digit"]) for row in rows] == probabilities.argmax(1).tolist()
    assert [float(row["confidence"]) for row in rows] == pytest.approx(probabilities.amax(1).tolist(), abs=1e-4)


def test_last_and_best_find_the_newest_run_of_the_model_named(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main("fit")
    main("fit --model.backbone=DS_CNN_V2")
    os.utime(LAST, (0, 0))
    capsys.readouterr()
    main("test --ckpt_path last")
    assert "ds_cnn_v2/version_0/checkpoints/last.ckpt" in capsys.readouterr().out
    main("test --ckpt_path last --model.backbone=DS_CNN_V1")
    assert str(LAST) in capsys.readouterr().out
    (tmp_path / "data.yaml").write_text("data: {batch_size: 20}  # whatever the backbone\n")
    main("validate --ckpt_path best --config=data.yaml")
    assert "ds_cnn_v2/version_0/checkpoints/best.ckpt" in capsys.readouterr().out


def test_the_user_beats_the_checkpoint(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit --model.image_size=16")
    main(f"test --ckpt_path {LAST}")
    trained = accuracy(capsys.readouterr().out)
    logs = sorted(RUN.iterdir())
    main(f"test --ckpt_path {LAST} --model.image_size=8")
    assert accuracy(capsys.readouterr().out) != trained
    assert sorted(RUN.iterdir()) == logs  # what the run did not do is not written into its log
    told = error(main, f"test --ckpt_path {LAST} --model.backbone=DS_CNN_V3", capsys)
    assert "another network" in told
    assert "DS_CNN_V3" in told
    assert "--model.lr" in error(main, f"fit --ckpt_path {LAST} --model.lr=0.5", capsys)


@pytest.mark.parametrize("line", ["fit --data.val_size=60", "validate --data.val_size=60", "test --data.source=sample"])
def test_a_checkpoint_is_not_measured_on_what_it_was_trained_on(
    main: Main, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    main("fit --trainer.max_epochs=1")
    command, option = line.split()
    assert option.partition("=")[0] in error(main, f"{command} --ckpt_path last {option}", capsys)


class Interrupt(Callback):
    """Presses Ctrl-C in a run's second epoch, once."""

    armed = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if Interrupt.armed and (trainer.current_epoch, batch_idx) == (1, 2):
            Interrupt.armed = False
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("schedule", ["one_cycle", "plateau"])
def test_a_resumed_run_ends_as_the_uninterrupted_one(
    main: Main, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], schedule: str
) -> None:
    monkeypatch.setattr(Interrupt, "armed", True)
    fit = "fit --trainer.max_epochs=3 --model.augment=RandomAffineBatch --model.backbone.dropout=0.2"
    fit += f" --model.schedule={schedule}"
    main(fit)
    with pytest.raises(SystemExit, match="130"):
        main(f"{fit} --trainer.callbacks={__name__}.Interrupt")
    run = RUN.with_name("version_1")
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["epoch"] == 0
    config = (run / "config.yaml").read_text()
    told = f"to go on: mnist-lit fit --ckpt_path {run}/checkpoints/last.ckpt --trust {__name__}"
    assert told in capsys.readouterr().out
    cli.main(["fit", "--ckpt_path", "last", "--trust", __name__])  # the rest is known
    assert sorted(path.name for path in RUN.parent.iterdir()) == ["version_0", "version_1"]
    assert (run / "config.yaml").read_text() == config
    ours, theirs = (torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (RUN, run))
    assert same(ours["state_dict"], theirs["state_dict"])
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]
    assert str(Path.cwd()) not in str(theirs["callbacks"])  # a checkpoint tells nothing of the machine
    assert torch.equal(ours["callbacks"]["RandomState"]["cpu"], theirs["callbacks"]["RandomState"]["cpu"])
    curves = [EventAccumulator(str(folder)).Reload().Scalars("val/accuracy") for folder in (RUN, run)]
    assert [(event.step, event.value) for event in curves[0]] == [(event.step, event.value) for event in curves[1]]
    if schedule == "one_cycle":
        told = error(main, f"fit --ckpt_path last --trainer.max_epochs=5 --trust {__name__}", capsys)
        assert "planned for 15 steps, and this makes 25" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("", "has made all its 2 epochs; to train longer, start anew with more of them"),
        ("--trainer.max_steps=7", "has made all its 7 steps; to train longer, start anew with more of them"),
        ("--model.schedule=plateau", "has made all its 2 epochs; to train longer, give a larger --trainer.max_epochs."),
    ],
)
def test_a_finished_run_is_not_resumed(main: Main, options: str, told: str) -> None:
    main(f"fit {options}")
    before = {path: path.stat().st_mtime_ns for path in Path("lightning_logs").rglob("*")}
    with pytest.raises(SystemExit, match=told):
        cli.main(["fit", "--ckpt_path", "last"])
    assert {path: path.stat().st_mtime_ns for path in Path("lightning_logs").rglob("*")} == before
    if "plateau" in options:
        cli.main(["fit", "--ckpt_path", "last", "--trainer.max_epochs", "3"])
        assert torch.load(LAST, weights_only=True)["epoch"] == 2


def test_the_best_checkpoint_stays_the_best_when_resumed_from_elsewhere(
    main: Main, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Interrupt, "armed", True)
    with pytest.raises(SystemExit, match="130"):  # of a run whose first epoch is never bettered
        main(f"fit --model.lr=1e-9 --trainer.max_epochs=3 --trainer.callbacks={__name__}.Interrupt")
    root = Path.cwd()
    monkeypatch.chdir("lightning_logs")
    cli.main(["fit", f"--ckpt_path={root / LAST}", f"--data.data_dir={root / 'data'}", "--trust", __name__])
    epochs = [
        torch.load(root / RUN / f"checkpoints/{name}.ckpt", weights_only=True)["epoch"] for name in ("best", "last")
    ]
    assert epochs == [0, 2]


def test_a_seed_repeats_a_run(main: Main) -> None:
    for _ in range(2):
        main("fit --model.augment=RandomAffineBatch --model.backbone.dropout=0.1")
    main("fit --model.augment=RandomAffineBatch --model.backbone.dropout=0.1 --seed_everything=1")
    runs = [weights(f"lightning_logs/ds_cnn_v1/version_{number}/checkpoints/last.ckpt") for number in range(3)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_watching_the_test_set_changes_nothing(main: Main) -> None:
    main("fit --model.backbone.dropout=0.1")
    main("fit --model.backbone.dropout=0.1 --data.watch_test=true")
    assert same(weights(LAST), weights("lightning_logs/ds_cnn_v1/version_1/checkpoints/last.ckpt"))
    monitor = "--trainer.callbacks=EarlyStopping --trainer.callbacks.monitor=test/accuracy"
    with pytest.raises(RuntimeError, match=r"test/accuracy.* which is not available"):
        main(f"fit --data.watch_test=true {monitor}")


def test_a_folder_can_be_used_twice(main: Main) -> None:
    fixed = "--trainer.logger=TensorBoardLogger --trainer.logger.save_dir=runs --trainer.logger.version=0"
    main(f"fit {fixed}")
    first = weights("runs/lightning_logs/version_0/checkpoints/last.ckpt")
    main(f"fit {fixed} --seed_everything=1")
    assert sorted(path.name for path in Path("runs/lightning_logs/version_0/checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]
    assert not same(first, weights("runs/lightning_logs/version_0/checkpoints/last.ckpt"))


def test_one_training_batch_is_one_batch(main: Main, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("trainer: {limit_train_batches: 1}\n")
    for given in ("--trainer.limit_train_batches=1", "--trainer.limit_train_batches 1", "--config one.yaml"):
        main(f"fit {given}")
        assert torch.load(max(Path().rglob("last.ckpt"), key=os.path.getmtime), weights_only=True)["global_step"] == 2


@pytest.mark.parametrize("network", ["Flat --model.backbone.pixels=256", "Conv"])
def test_any_module_can_be_the_backbone(main: Main, capsys: pytest.CaptureFixture[str], network: str) -> None:
    main(f"fit --model.backbone={__name__}.{network} --model.image_size=16")
    assert f"--trust {__name__}" in error(main, "test --ckpt_path last", capsys)
    main(f"test --ckpt_path last --trust {__name__}")
    assert accuracy(capsys.readouterr().out) > 0.1


def test_without_a_logger_nothing_is_written(main: Main) -> None:
    main("fit --trainer.logger=false")
    assert [path.name for path in Path().iterdir()] == ["data"]


def test_an_ended_process_says_so(main: Main) -> None:
    with pytest.raises(SystemExit) as end:
        main(f"fit --trainer.callbacks={__name__}.Terminate")
    assert end.value.code == 143


class Terminate(Callback):
    """Asks the process to end, as a shutdown does."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train", "there is no command 'train'"),
        ("fit --model.lr=fast", "--model.lr takes float, not fast"),
        ("fit --model.lr=-1", "--model.lr must be more than 0"),
        ("fit --model.image_size=3", "--model.image_size must be 8 or more"),
        ("fit --model.backbone=DS_CNN_V9", "choose from DS_CNN_V1, DS_CNN_V2, DS_CNN_V3"),
        ("fit --model.backbone.dilation=0", "--model.backbone.dilation must be 1 or more"),
        ("fit --model.backbone.dropout=2", "--model.backbone.dropout must be from 0 to below 1"),
        ("fit --model.backbone=nowhere.Net", "No module named 'nowhere'"),
        ("fit --model.augment.degree=3", "'degree' is not accepted"),
        ("fit --model.warmup=1", "--model.warmup must be from 0 to below 1"),
        ("fit --model.augment=Blur", "choose from RandomAffineBatch"),
        ("fit --data.source=fashion", "--data.source takes mnist or sample, not fashion"),
        ("fit --data.batch_size=0", "--data.batch_size must be 1 or more"),
        ("fit --data.seeed=1", "--data.seeed"),
        ("fit --trainer.max_epochs=many", "--trainer.max_epochs takes int, not many"),
        ("fit --trainer.max_epochs=-1", "needs an end"),
        ("fit --model.momentum=2", "--model takes backbone, augment, image_size"),
        ("fit --model.backbone.momentum=2", "--model.backbone: dilation, dropout"),
        ("fit --model.backbone=torch.optim.SGD", "--model.backbone takes a class that is a Module"),
        ("fit --model.image_size=-3", "--model.image_size must be 8 or more"),
        (
            "fit --model.image_size=99999",
            "There is not enough memory: a smaller --data.batch_size",
        ),
        ("fit --model.augment=RandomAffineBatch --model.augment.degrees=-3", "takes degrees and translate from 0 up"),
        ("fit --data.batch_sise=3", "--data takes batch_size"),
        ("fit --data.val_size=300", "--data.val_size 300 leaves nothing to train or validate on: there are 300 images"),
        ("fit --trainer.accelerator=quantum", "--trainer.accelerator takes auto or"),
        ("fit --trainer.devices=-5", "--trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
        ("fit --trainer.maxepochs=3", "--trainer takes max_epochs"),
        ("fit --trainer.accumulate_grad_batches=0", "--trainer.accumulate_grad_batches must be 1 or more"),
        ("fit --trainer.strategy=foo", "--trainer: You selected an invalid strategy"),
        ("fit --trainer.val_check_interval=1000", "--trainer.val_check_interval (1000) must be less than or equal to"),
        ("fit --seed_everything=-1", "--seed_everything must be from 0 to 4294967295"),
        ("fit --config=data/MNIST/raw/t10k-images-idx3-ubyte.gz", "--config: that is no text"),
        ("fit --config=nowhere.yaml", "--config: File does not exist"),
        ("fit --config=broken.yaml", "Problems parsing config"),
        ("fit --config=unknown.yaml", "model.lrr"),
        ("fit --ckpt_path=last", "Run mnist-lit fit first"),
        ("fit --data.data_dir=data/MNIST/raw/t10k-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"),
        ("test", "test needs --ckpt_path"),
        ("test --ckpt_path=nowhere.ckpt", "nowhere.ckpt cannot be read: No such file"),
        ("test --ckpt_path=https://example.com/a.ckpt", "download it yourself"),
        ("test --ckpt_path=broken.yaml", "broken.yaml is not a checkpoint"),
        ("compare --seeds=0", "--seeds: takes a whole number, 1 or more, not 0"),
        ("compare nowhere.yaml", "nowhere.yaml"),
        ("compare --modl=3", "--modl"),
        ("compare --config=unknown.yaml", "Name the recipes first"),
        ("fit --trainer.strategy=ddp_spawn", "give ddp"),
        ("benchmark --trainer.devices=2", "leave out --trainer.devices"),
        ("robustness --trust my_net last", "Name the checkpoints before --trust"),
        ("compare --trainer.devices=2", "cannot work with --trainer.devices 2"),
        ("compare --trainer.num_nodes=2", "cannot work with --trainer.num_nodes 2"),
        ("compare --trainer.logger=false", "cannot work with --trainer.logger false"),
        ("compare --trainer.limit_val_batches=0", "cannot work with --trainer.limit_val_batches 0"),
        ("compare --ckpt_path=last", "cannot work with --ckpt_path last"),
        ("compare --resume", "nothing to resume"),
        ("search unknown.yaml", "--vary"),
        ("search good.yaml --vary=model.lr=fast", "--vary model.lr=fast: give a list"),
        ("search good.yaml --vary 'model.lr={low: 2, high: 1}'", "give a list"),
        ("search good.yaml --vary 'model.image_size=[16, x]'", "--model.image_size takes int, not x"),
        ("search good.yaml --vary 'model.lr={low: 0, high: 0.1, log: true}'", "give a list"),
        ("search good.yaml --vary 'model.lr={low: -1.0, high: 1e-1}'", "--model.lr must be more than 0"),
        ("search good.yaml --vary model.lr=[1] --vary model.lr=[2]", "--vary names an option twice"),
        ("search good.yaml --vary data.val_size=[40,50]", "--vary data.val_size"),
        ("search good.yaml --vary model.lr=[1] --data.watch_test=true", "does not read the test set"),
        ("search good.yaml --vary model.lr=[1] --trials=0", "--trials: takes a whole number"),
        ("search --vary model.lr=[1] good.yaml", "Name the recipe first"),
        ("compare good.yaml --change model.deskew", "give OPTION=VALUE"),
        ("compare good.yaml --change model.lr=0.1 --change model.lr=0.1", "Two recipes are named"),
        ("compare good.yaml --change model.lr=-1", "--model.lr must be more than 0"),
        ("compare --trainer.limit_test_batches=2", "cannot work with --trainer.limit_test_batches 2"),
        ("robustness --data.source=fashion", "invalid choice: 'fashion'"),
        ("robustness broken.yaml", "broken.yaml is not a checkpoint"),
        ("demo --ckpt_path=last", "last: no run below lightning_logs has kept one"),
        ("benchmark --rounds=0", "--rounds: takes a whole number"),
        ("benchmark --ckpt_path last", "leave out --ckpt_path"),
        ("benchmark speed", "choose from overhead, others, growth, processes"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, told: str
) -> None:
    (tmp_path / "broken.yaml").write_text("model: [\n")
    (tmp_path / "good.yaml").write_text("model:\n  lr: 0.1\n")
    (tmp_path / "unknown.yaml").write_text("model:\n  lrr: 1\n")
    assert told in error(main, line, capsys)
    assert sorted(path.name for path in Path().iterdir() if path.name != "lightning_logs") == [
        "broken.yaml",
        "data",
        "good.yaml",
        "unknown.yaml",
    ]
    assert not list(Path("lightning_logs").rglob("*.*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    told = error(main, "fit --trainer.accelerator=gpu", capsys)
    assert "--trainer.accelerator gpu: there is none here; give auto or cpu." in told


def test_a_run_that_fails_before_it_begins_leaves_no_folder(
    main: Main, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "MNIST.yaml").write_text("data: {source: sample}\n")
    told = error(main, "fit --config=MNIST.yaml --data.data_dir=. --data.val_size=9999", capsys)
    assert "--data.val_size 9999 leaves nothing" in told
    assert not list(Path("lightning_logs").rglob("version_*"))


def test_a_classifier_built_in_python_trains_and_reloads(main: Main, tmp_path: Path) -> None:
    model = DigitClassifier(DS_CNN_V2(), image_size=16)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, **options)
    data = MNISTDataModule(val_size=50, batch_size=50)
    with warnings.catch_warnings(action="ignore"):
        trainer.fit(model, data)
        trainer.save_checkpoint(tmp_path / "mine.ckpt")
    loaded = DigitClassifier.load_from_checkpoint(tmp_path / "mine.ckpt", backbone=DS_CNN_V2())
    assert loaded.preprocess.image_size == 16
    assert same(loaded.state_dict(), model.state_dict())
    main("test --ckpt_path mine.ckpt --model.backbone=DS_CNN_V2")
