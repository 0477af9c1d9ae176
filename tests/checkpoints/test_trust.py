"""A stranger's checkpoint runs nothing: each of these would write a file, `canary`, if it did."""

import io
import pickle
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.commands import SMALL, accuracy, error, same, weights

from mnist_lit import UserError, cli
from mnist_lit.checkpoints.io import load
from mnist_lit.classifier import DigitClassifier

Main = Callable[[str], None]
RUN = Path("lightning_logs/ds_cnn_v1/version_0")
LAST = RUN / "checkpoints/last.ckpt"
EVIL = """from pathlib import Path
Path("canary").touch()
from torch import nn
class Net(nn.Linear):
    def __init__(self): super().__init__(1, 1)
def payload(*given, **named): Path("canary").touch()
"""


class Payload:
    """What an unpickler would run."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("canary"),)


@pytest.fixture(scope="module")
def trained(tiny_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a network was trained."""
    folder = tmp_path_factory.mktemp("trained")
    where = [f"--data.data_dir={tiny_mnist}", f"--trainer.default_root_dir={folder}"]
    cli.main(["fit", *SMALL, "--trainer.max_epochs=1", *where])
    config = folder / RUN / "config.yaml"
    config.write_text(config.read_text().replace(str(folder), ".").replace(str(tiny_mnist), "data"))
    return folder


@pytest.fixture
def stranger(
    main: Main,  # noqa: ARG001  whose folder it is
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """The checkpoint of a run, to be changed; beside a module that writes the canary when it is imported."""
    shutil.copytree(trained / "lightning_logs", "lightning_logs")
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    checkpoint: dict[str, Any] = torch.load(LAST, weights_only=True)
    del checkpoint["sealed"]  # as if no checksum had ever been
    return checkpoint


def test_the_canary_sings(stranger: dict[str, Any]) -> None:
    torch.save(stranger | {"extra": Payload()}, "payload.ckpt")
    torch.load("payload.ckpt", weights_only=False)
    assert Path("canary").exists()
    Path("canary").unlink()
    __import__("evil")
    assert Path("canary").exists()


@pytest.mark.parametrize("kind", ["payload", "legacy", "pickle", "compressed"])
def test_a_pickle_runs_nothing(
    stranger: dict[str, Any], main: Main, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = Path("stranger.ckpt")
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload()))
    else:
        extra = {} if kind == "compressed" else {"extra": Payload()}
        torch.save(stranger | extra, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "compressed":
        source, target = zipfile.ZipFile(io.BytesIO(path.read_bytes())), io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in source.namelist():
                archive.writestr(name, source.read(name))
        path.write_bytes(target.getvalue())
    told = "stranger.ckpt is not a checkpoint: damaged, or more than weights and plain values"
    for command in ("fit --ckpt_path", "validate --ckpt_path", "test --ckpt_path", "predict --ckpt_path"):
        assert told in error(main, f"{command} stranger.ckpt", capsys)
    assert told in error(main, "robustness stranger.ckpt", capsys)
    assert told in error(main, "publish stranger.ckpt mine.safetensors", capsys)
    with pytest.raises(UserError, match="is not a checkpoint"):
        DigitClassifier.load_from_checkpoint("stranger.ckpt")
    assert not Path("canary").exists()


NESTED = {"encoder_layer": "{class_path: evil.Net}", "num_layers": 1}
GRAPH = {"body": {"_code": "forward = print"}, "import_block": "import evil"}
REFUSED = r"--trust |_instantiator|its \w+ is a text|cannot be built again"
LAYER = {"d_model": 8, "nhead": 1, "activation": "evil.payload"}


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": {"class_path": "evil.Net"}},
        {"backbone": "evil.Net"},
        {"augment": {"class_path": "evil.Net"}},
        {"backbone": {"class_path": "torch.nn.TransformerEncoderLayer", "init_args": LAYER}},
        {"backbone": {"class_path": "torch.nn.Sequential", "dict_kwargs": {"a": {"class_path": "evil.Net"}}}},
        {"backbone": "{class_path: evil.Net}"},
        {"augment": "{class_path: evil.Net}"},
        {"backbone": "./sub.yaml"},
        {"backbone": {"class_path": "torch.nn.TransformerEncoder", "init_args": NESTED}},
        {"backbone": {"class_path": "torch.fx.graph_module.reduce_graph_module", "init_args": GRAPH}},
        {"backbone": {"class_path": "torchvision.models.resnet18", "init_args": {"weights": "DEFAULT"}}},
        {"_instantiator": "evil.payload"},
        {"_class_path": "evil.Net"},
    ],
    ids=str,
)
def test_a_hostile_class_runs_nothing(
    stranger: dict[str, Any], main: Main, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    stranger["hyper_parameters"] |= change
    Path("sub.yaml").write_text("class_path: evil.Net")
    torch.save(stranger, "stranger.ckpt")
    for line in ("fit --ckpt_path", "validate --ckpt_path", "test --ckpt_path", "predict --ckpt_path", "robustness"):
        told = error(main, f"{line} stranger.ckpt", capsys)
        assert re.search(REFUSED, told), told
    with pytest.raises(UserError, match=REFUSED):
        DigitClassifier.load_from_checkpoint("stranger.ckpt")
    assert not Path("canary").exists()


def test_settings_under_a_name_of_long_ago_are_not_read(stranger: dict[str, Any]) -> None:
    stranger["hparams"] = stranger["module_arguments"] = {"augment": {"class_path": "evil.Net"}}
    torch.save(stranger, "stranger.ckpt")
    assert DigitClassifier.load_from_checkpoint("stranger.ckpt").augment is None
    assert not Path("canary").exists()


@pytest.mark.parametrize(
    "text",
    [
        "model: ./nested.yaml",
        "model: {backbone: '{class_path: evil.Net}'}",
        "trainer: {callbacks: [{class_path: evil.Net}]}",
        "trainer: {callbacks: evil.Net}",
        "model: {backbone: evil.Net}",
        "trust: [evil]\nmodel: {backbone: evil.Net}",
        "model: !!python/object/apply:evil.payload []",
        "- [",
    ],
)
@pytest.mark.usefixtures("stranger")
def test_a_hostile_recipe_beside_a_checkpoint_runs_nothing(
    main: Main, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    for folder in (Path(), RUN):
        (folder / "nested.yaml").write_text("backbone: {class_path: evil.Net}")
    (RUN / "config.yaml").write_text(text)
    told = error(main, "fit --ckpt_path last", capsys)
    assert "names evil.Net" in told or "config.yaml is not a recipe" in told
    assert not Path("canary").exists()


def test_a_checkpoint_that_fits_no_class_is_told_in_a_line(
    stranger: dict[str, Any], main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {key: value for key, value in stranger.items() if key != "sealed"}
    torch.save(good | {"hyper_parameters": good["hyper_parameters"] | {"lr": None}}, "stranger.ckpt")
    assert "stranger.ckpt cannot be built again" in error(main, "robustness stranger.ckpt", capsys)
    torch.save(good | {"hyper_parameters": good["hyper_parameters"] | {"lr": torch.zeros(2)}}, "stranger.ckpt")
    assert "its settings are no plain values" in error(main, "test --ckpt_path stranger.ckpt", capsys)
    more = "--trainer.max_epochs=9 --trainer.logger=false"
    for key, value in (("optimizer_states", [3]), ("lr_schedulers", [3]), ("loops", {}), ("callbacks", [3])):
        torch.save(good | {key: value}, "stranger.ckpt")
        told = error(main, f"fit --ckpt_path stranger.ckpt {more}", capsys)
        assert "what that holds cannot be restored" in told or "cannot be resumed" in told


def test_a_path_in_a_checkpoint_leads_nowhere(stranger: dict[str, Any], main: Main, tmp_path: Path) -> None:
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    config["trainer"]["max_epochs"] = 3
    config["model"]["schedule"] = stranger["hyper_parameters"]["schedule"] = "plateau"
    (RUN / "config.yaml").write_text(yaml.safe_dump(config))
    stranger["lr_schedulers"] = [
        torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([torch.zeros(1)]), mode="max").state_dict()
    ]
    precious = tmp_path / "precious"
    precious.touch()
    for name, state in stranger["callbacks"].items():
        if name.startswith("Keeper"):
            for path in ("..", str(precious), "../../../precious"):
                state |= {"best_model_path": path, "kth_best_model_path": path, "last_model_path": path}
                state |= {"best_k_models": {path: torch.tensor(-1.0)}, "dirpath": str(tmp_path)}
                torch.save(stranger, LAST)
                main("fit --ckpt_path last")
                assert precious.exists()
                assert (RUN / "config.yaml").exists()
                assert sorted(path.name for path in LAST.parent.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_an_address_is_not_read(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    for scheme, command in {"http": "fit", "https": "validate", "s3": "test", "file": "predict"}.items():
        address = f"{scheme}://127.0.0.1:9/a.ckpt"
        assert "download it yourself" in error(main, f"{command} --ckpt_path {address}", capsys)
        with pytest.raises(UserError, match="download it yourself"):
            DigitClassifier.load_from_checkpoint(address)


def test_what_is_trusted_is_imported(stranger: dict[str, Any], main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    stranger["hyper_parameters"]["backbone"] = {"class_path": "evil.Net"}
    torch.save(stranger, "stranger.ckpt")
    assert "The checkpoint holds another network" in error(main, "test --ckpt_path stranger.ckpt --trust evil", capsys)
    assert Path("canary").exists()


@pytest.mark.usefixtures("stranger")
def test_weights_are_published_and_read(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main("publish last mine.safetensors")
    main(f"test --ckpt_path {LAST}")
    told = accuracy(capsys.readouterr().out)
    shutil.rmtree("lightning_logs")
    main("test --ckpt_path mine.safetensors")
    assert accuracy(capsys.readouterr().out) == told
    assert same(
        load("mine.safetensors")["state_dict"], DigitClassifier.load_from_checkpoint("mine.safetensors").state_dict()
    )
    assert "holds weights alone" in error(main, "fit --ckpt_path mine.safetensors", capsys)
    assert "must end with .safetensors" in error(main, "publish mine.safetensors mine.ckpt", capsys)
    content = bytearray(Path("mine.safetensors").read_bytes())
    content[-100] ^= 1
    Path("mine.safetensors").write_bytes(content)
    assert "damaged" in error(main, "test --ckpt_path mine.safetensors", capsys)


def test_a_checkpoint_without_a_checksum_is_read_unless_it_had_one(stranger: dict[str, Any], tmp_path: Path) -> None:
    torch.save(stranger, tmp_path / "old.ckpt")
    assert load(tmp_path / "old.ckpt")["global_step"] == 5
    torch.save(stranger | {"sealed": True}, tmp_path / "stripped.ckpt")
    with pytest.raises(UserError, match=r"stripped\.ckpt is damaged"):
        load(tmp_path / "stripped.ckpt")
    assert same(weights(LAST), load(LAST)["state_dict"])  # by torch alone, too
