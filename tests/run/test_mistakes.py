"""A user's mistake ends with one line that names the option, before anything is written."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.commands import WATCH_TEST, Main, error_line, names

from mnist_lit import cli

PLATEAU = "fit --model.schedule=plateau"
ACCUMULATE = "trainer: {callbacks: {class_path: GradientAccumulationScheduler, init_args: {scheduling: {1: 2}}}}"
MISTAKES = [
    ("train", "'train'"),
    ("fit --model.lr=fast", "--model.lr takes a number, not fast"),
    ("fit --model.lr=-1", "--model.lr takes a number >0, not -1"),
    ("fit --model.image_size=3", "--model.image_size must be 8 or more"),
    ("fit --model.backbone=DS_CNN_V9", "choose from DS_CNN_V1, DS_CNN_V2, DS_CNN_V3"),
    ("fit --model.backbone.dilation=0", "--model.backbone.dilation must be 1 or more"),
    ("fit --model.backbone.dropout=2", "--model.backbone.dropout must be from 0 to below 1"),
    ("fit --model.backbone=nowhere.Net", "No module named 'nowhere'"),
    ("fit --model.augment.degree=3", "'degree' is not accepted"),
    ("fit --model.warmup=1", "--model.warmup takes a number >0 and <1, not 1"),
    ("fit --model.augment=Blur", "choose from RandomAffineBatch"),
    ("fit --data.source=fashion", "--data.source takes mnist or sample, not fashion"),
    ("fit --data.batch_size=0", "--data.batch_size takes a whole number >0, not 0"),
    ("fit --data.seeed=1", "--data.seeed"),
    ("fit --trainer.max_epochs=many", "--trainer.max_epochs takes int, not many"),
    ("fit --trainer.max_epochs=-1", "--trainer.max_epochs"),
    ("fit --model.momentum=2", "--model takes backbone, augment, image_size"),
    ("fit --model.backbone.momentum=2", "--model.backbone: dilation, dropout"),
    ("fit --model.backbone=torch.optim.SGD", "--model.backbone takes a class that is a Module"),
    ("fit --model.image_size=-3", "--model.image_size takes a whole number >0, not -3"),
    ("fit --data.val_size=1.5", "--data.val_size takes a whole number, not 1.5"),
    ("fit --model.image_size=99999", "not enough memory"),
    ("fit --model.augment=RandomAffineBatch --model.augment.degrees=-3", "degrees"),
    ("fit --data.batch_sise=3", "did you mean --data.batch_size?"),
    ("fit --max_epochs=3", "did you mean --trainer.max_epochs?"),
    ("fit --confg=good.yaml", "did you mean --config?"),
    ("compare --sed=3", "--sed (did you mean --seeds?)"),
    ("compare --config=good.yaml", "Name the recipes first"),
    ("test --ckpt_path=last --trainer.limit_test_batches=0", "--trainer.limit_test_batches 0 reads no images"),
    ("validate --ckpt_path=last --trainer.limit_val_batches=0", "--trainer.limit_val_batches 0 reads no images"),
    ("predict --ckpt_path=last --trainer.limit_predict_batches=0", "limit_predict_batches 0 reads no images"),
    ("fti", "did you mean fit?"),
    ("fit --data.val_size=300", "--data.val_size 300"),
    ("fit --trainer.accelerator=quantum", "--trainer.accelerator takes auto or"),
    ("fit --trainer.devices=-5", "--trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
    ("fit --trainer.maxepochs=3", "did you mean --trainer.max_epochs?"),
    ("fit --trainer.accumulate_grad_batches=0", "--trainer.accumulate_grad_batches must be 1 or more"),
    ("fit --trainer.max_epochs=-1 --trainer.max_time=00:00:00:09", "--trainer.max_epochs or --trainer.max_steps"),
    ("fit --trainer.barebones=true", "mnist-lit benchmark"),
    ("fit --trainer.max_epochs=0", "--trainer.max_epochs 0 trains nothing"),
    ("fit --trainer.max_steps=0", "--trainer.max_steps 0 trains nothing"),
    ("fit --trainer.limit_train_batches=0", "trains nothing: give a larger one"),
    ("fit --trainer.max_time=00:00:00:00", "--trainer.max_time 00:00:00:00 trains nothing"),
    ("fit --trainer.max_time=soon", "'soon'"),
    (f"{PLATEAU} --trainer.limit_val_batches=0", "plateau needs validations"),
    (f"{PLATEAU} --trainer.check_val_every_n_epoch=3", "plateau needs validations"),
    (f"{PLATEAU} --trainer.max_steps=4", "plateau needs validations"),
    (f"{PLATEAU} --trainer.accumulate_grad_batches=2 --trainer.max_steps=2", "plateau needs validations"),
    ("fit --config=accumulate.yaml", "--model.schedule plateau, or --trainer.accumulate_grad_batches"),
    ("fit --trainer.callbacks=LearningRateFinder", "LearningRateFinder has found no learning rate"),
    ("fit --trainer.logger=CSVLogger", "save_dir"),
    ("fit --trainer.strategy=foo", "--trainer: You selected an invalid strategy"),
    ("fit --trainer.val_check_interval=1000", "--trainer.val_check_interval (1000) must be less than or equal to"),
    ("fit --seed_everything=-1", "--seed_everything must be from 0 to 4294967295"),
    ("fit --config=data/MNIST/raw/t10k-images-idx3-ubyte.gz", "is not a recipe"),
    ("fit --config=nowhere.yaml", "is neither a file nor a recipe of the project (debug, ds_cnn_v1"),
    ("fit --config=broken.yaml", "broken.yaml is not a recipe"),
    ("fit --config=unknown.yaml", "model.lrr"),
    ("fit --ckpt_path=last", "mnist-lit fit"),
    ("fit --data.data_dir=data/MNIST/raw/t10k-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"),
    ("test", "test needs --ckpt_path"),
    ("test --ckpt_path=nowhere.ckpt", "nowhere.ckpt"),
    ("test --ckpt_path=https://example.com/a.ckpt", "example.com/a.ckpt is not a file: download it first"),
    ("test --ckpt_path=broken.yaml", "broken.yaml"),
    ("compare --seeds=0", "--seeds"),
    ("compare nowhere.yaml", "nowhere.yaml"),
    ("compare --modl=3", "--modl"),
    ("compare --config=unknown.yaml", "recipes"),
    ("fit --trainer.strategy=ddp_spawn", "ddp_spawn"),
    ("benchmark --trainer.devices=2", "--trainer.devices"),
    ("robustness --trust my_net last", "--trust"),
    ("compare --trainer.devices=2", "--trainer.devices 2"),
    ("compare --trainer.num_nodes=2", "--trainer.num_nodes 2"),
    ("compare --trainer.logger=false", "--trainer.logger false"),
    ("compare --trainer.limit_val_batches=0", "--trainer.limit_val_batches 0"),
    ("compare --trainer.max_steps=3", "--trainer.max_steps 3"),
    ("compare --trainer.max_time=00:00:01:00", "--trainer.max_time 00:00:01:00"),
    (
        "compare --trainer.callbacks=BatchSizeFinder",
        "--trainer.callbacks lightning.pytorch.callbacks.BatchSizeFinder: ",
    ),
    ("compare --trainer.check_val_every_n_epoch=2", "--trainer.check_val_every_n_epoch 2"),
    ("search good.yaml --vary model.lr=[1] --trainer.max_steps=3", "--trainer.max_steps 3"),
    ("compare --ckpt_path=last", "leave out --ckpt_path"),
    ("compare --resume", "nothing to resume"),
    ("search unknown.yaml", "--vary"),
    ("search good.yaml --vary=model.lr=fast", "--vary model.lr=fast"),
    ("search good.yaml --vary 'model.lr={low: 2, high: 1}'", "--vary model.lr"),
    ("search good.yaml --vary 'model.image_size=[16, x]'", "--model.image_size takes a whole number, not x"),
    ("search good.yaml --vary 'model.lr={low: 0, high: 0.1, log: true}'", "--vary model.lr"),
    ("search good.yaml --vary 'model.lr={low: -1.0, high: 1e-1}'", "--model.lr takes a number >0, not -1.0"),
    ("search good.yaml --vary model.lr=[1] --vary model.lr=[2]", "--vary"),
    ("search good.yaml --vary data.val_size=[40,50]", "--vary data.val_size"),
    (f"search good.yaml --vary model.lr=[1] {WATCH_TEST}", "test set"),
    ("search good.yaml --vary model.lr=[1] --trials=0", "--trials"),
    ("search --vary model.lr=[1] good.yaml", "recipe"),
    ("compare good.yaml --change model.deskew", "OPTION=VALUE"),
    ("compare good.yaml --change model.lr=0.1 --change model.lr=0.1", "model.lr=0.1"),
    ("compare good.yaml --change model.lr=-1", "--model.lr takes a number >0, not -1"),
    ("compare --trainer.limit_test_batches=2", "--trainer.limit_test_batches 2"),
    ("robustness --data.source=fashion", "invalid choice: 'fashion'"),
    ("robustness broken.yaml", "broken.yaml"),
    ("demo --ckpt_path=last", "last"),
    ("benchmark --rounds=0", "--rounds"),
    ("benchmark --ckpt_path last", "--ckpt_path"),
    ("benchmark speed", "overhead, others, recipes"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_mistake_is_one_line_and_writes_nothing(
    main: Main, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    files = {"broken.yaml": "model: [\n", "good.yaml": "model:\n  lr: 0.1\n", "unknown.yaml": "model:\n  lrr: 1\n"}
    files["accumulate.yaml"] = ACCUMULATE
    for name, content in files.items():
        Path(name).write_text(content)
    assert message in error_line(main, line, capsys)
    assert {*names()} - {"lightning_logs"} == {*files, "data"}
    assert not list(Path("lightning_logs").rglob("*.*"))


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("wandb", "fit --trainer.logger=WandbLogger"),
        ("mlflow", "fit --trainer.logger=MLFlowLogger"),
        ("psutil", "fit --trainer.callbacks=DeviceStatsMonitor"),
        ("transformer_engine", "fit --trainer.precision=transformer-engine"),
    ],
)
def test_missing_package_is_one_line(main: Main, capsys: pytest.CaptureFixture[str], package: str, line: str) -> None:
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    assert f"needs the package {package}, which is not installed" in error_line(main, line, capsys)
    assert {*names()} - {"lightning_logs"} == {"data"}
    assert not list(Path("lightning_logs").rglob("*.*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")
def test_missing_gpu_is_one_line(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--trainer.accelerator gpu" in error_line(main, "fit --trainer.accelerator=gpu", capsys)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 50))


@pytest.mark.parametrize(
    "text",
    [
        *(
            BOMB,
            "model: &a [*a]",
            "model: " + "[" * 3000,
            "model: {a: " * 60 + "1" + "}" * 60,
            "data: {data_dir: 2024-99-99}",
        ),
        'model: "\\0"',
        *("seed_everything: " + "9" * 5000, "model: {lr: !!int ''}", "? [a]\n: 1", "x: " + "y" * 100_000),
    ],
    ids=lambda text: text[:20],
)
def test_recipe_that_is_no_small_tree_is_one_line(main: Main, capsys: pytest.CaptureFixture[str], text: str) -> None:
    Path("bad.yaml").write_text(text)
    assert "bad.yaml is not a recipe" in error_line(main, "fit --config bad.yaml", capsys)


@pytest.mark.usefixtures("main")
@pytest.mark.parametrize("group", ["data", "trainer"])
def test_group_without_options_is_one_line(capsys: pytest.CaptureFixture[str], group: str) -> None:
    Path("bad.yaml").write_text(f"{group}: null")
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", "--config=bad.yaml"])
    assert f"--{group} must map options to values" in str(end.value.code) + capsys.readouterr().err
