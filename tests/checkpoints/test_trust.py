"""Loading an untrusted checkpoint runs no code: each attack here would create the file `canary`."""

import io
import pickle
import re
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.commands import LAST, RUN, SMALL, Main, accuracy, equal_weights, error_line, names

from mnist_lit import UserError, cli
from mnist_lit.checkpoints.io import load
from mnist_lit.run.restore import load_classifier

EVIL = """from pathlib import Path
Path("canary").touch()
from torch import nn
class Net(nn.Linear):
    def __init__(self): super().__init__(1, 1)
def payload(*given, **named): Path("canary").touch()
"""


class Payload:
    """An object that creates the canary when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("canary"),)


@pytest.fixture(scope="module")
def trained(tiny_mnist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one run."""
    folder = tmp_path_factory.mktemp("trained")
    where = [f"--data.data_dir={tiny_mnist}", f"--trainer.default_root_dir={folder}"]
    cli.main(["fit", *SMALL, "--trainer.max_epochs=1", *where])
    config = folder / RUN / "config.yaml"
    config.write_text(config.read_text().replace(str(folder), ".").replace(str(tiny_mnist), "data"))
    return folder


@pytest.fixture
def untrusted(
    main: Main,  # noqa: ARG001  sets the working folder
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """The checkpoint of a run, for a test to change, beside a module that creates the canary when it is imported."""
    shutil.copytree(trained / "lightning_logs", "lightning_logs")
    (tmp_path / "evil.py").write_text(EVIL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evil", raising=False)
    checkpoint: dict[str, Any] = torch.load(LAST, weights_only=True)
    checkpoint.pop("sealed", None)  # as if it had been saved without a checksum
    return checkpoint


def test_attacks_work_without_protection(untrusted: dict[str, Any]) -> None:
    torch.save(untrusted | {"extra": Payload()}, "payload.ckpt")
    torch.load("payload.ckpt", weights_only=False)
    assert Path("canary").exists()
    Path("canary").unlink()
    __import__("evil")
    assert Path("canary").exists()


@pytest.mark.parametrize("kind", ["payload", "legacy", "pickle", "compressed"])
def test_pickle_runs_no_code(
    untrusted: dict[str, Any], main: Main, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = Path("untrusted.ckpt")
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Payload()))
    else:
        extra = {} if kind == "compressed" else {"extra": Payload()}
        torch.save(untrusted | extra, path, _use_new_zipfile_serialization=kind != "legacy")
    if kind == "compressed":
        source, target = zipfile.ZipFile(io.BytesIO(path.read_bytes())), io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in source.namelist():
                archive.writestr(name, source.read(name))
        path.write_bytes(target.getvalue())
    message = "untrusted.ckpt is not a checkpoint"
    for command in ("fit --ckpt_path", "test --ckpt_path", "robustness"):
        assert message in error_line(main, f"{command} untrusted.ckpt", capsys)
    assert message in error_line(main, "publish untrusted.ckpt mine.safetensors", capsys)
    with pytest.raises(UserError, match="is not a checkpoint"):
        load_classifier(Path("untrusted.ckpt"))
    assert not Path("canary").exists()


NESTED = {"encoder_layer": "{class_path: evil.Net}", "num_layers": 1}
GRAPH = {"body": {"_code": "forward = print"}, "import_block": "import evil"}
REFUSED = r"--trust |untrusted\.ckpt |Config file loop"
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
    ],
    ids=str,
)
def test_hostile_class_runs_no_code(
    untrusted: dict[str, Any], main: Main, capsys: pytest.CaptureFixture[str], change: dict[str, Any]
) -> None:
    untrusted["hyper_parameters"] |= change
    Path("sub.yaml").write_text("class_path: evil.Net")
    torch.save(untrusted, "untrusted.ckpt")
    for line in ("fit --ckpt_path", "test --ckpt_path", "robustness"):
        message = error_line(main, f"{line} untrusted.ckpt", capsys)
        assert re.search(REFUSED, message), message
    with pytest.raises(UserError, match=REFUSED):
        load_classifier(Path("untrusted.ckpt"))
    assert not Path("canary").exists()


@pytest.mark.parametrize("change", [{"_instantiator": "evil.payload"}, {"_class_path": "evil.Net"}], ids=str)
def test_instructions_to_build_another_class_are_ignored(
    untrusted: dict[str, Any], main: Main, change: dict[str, Any]
) -> None:
    untrusted["hyper_parameters"] |= change
    torch.save(untrusted, "untrusted.ckpt")
    main("test --ckpt_path untrusted.ckpt")
    load_classifier("untrusted.ckpt")
    assert not Path("canary").exists()


def test_hyper_parameters_under_legacy_names_are_ignored(untrusted: dict[str, Any]) -> None:
    untrusted["hparams"] = untrusted["module_arguments"] = {"augment": {"class_path": "evil.Net"}}
    torch.save(untrusted, "untrusted.ckpt")
    assert load_classifier(Path("untrusted.ckpt"))[0].augment is None
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
@pytest.mark.usefixtures("untrusted")
def test_hostile_recipe_beside_a_checkpoint_runs_no_code(
    main: Main, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    for folder in (Path(), RUN):
        (folder / "nested.yaml").write_text("backbone: {class_path: evil.Net}")
    (RUN / "config.yaml").write_text(text)
    message = error_line(main, "fit --ckpt_path last", capsys)
    assert "evil.Net" in message or "config.yaml" in message
    assert not Path("canary").exists()


def test_malformed_checkpoint_is_one_line(
    untrusted: dict[str, Any], main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    good = dict(untrusted)
    torch.save(good | {"hyper_parameters": good["hyper_parameters"] | {"image_size": "large"}}, "untrusted.ckpt")
    assert "untrusted.ckpt" in error_line(main, "robustness untrusted.ckpt", capsys)
    torch.save(good | {"hyper_parameters": good["hyper_parameters"] | {"lr": torch.zeros(2)}}, "untrusted.ckpt")
    assert "settings" in error_line(main, "test --ckpt_path untrusted.ckpt", capsys)
    more = "--trainer.max_epochs=9 --trainer.logger=false"
    for key, value in (("optimizer_states", [3]), ("lr_schedulers", [3]), ("loops", {}), ("callbacks", [3])):
        torch.save(good | {"lr_schedulers": [], key: value}, "untrusted.ckpt")  # else its steps are refused first
        message = error_line(main, f"fit --ckpt_path untrusted.ckpt {more}", capsys)
        assert re.search(r"cannot be (restored|resumed)", message)


def test_paths_in_a_checkpoint_delete_nothing(untrusted: dict[str, Any], main: Main, tmp_path: Path) -> None:
    config = yaml.safe_load((RUN / "config.yaml").read_text())
    config["trainer"]["max_epochs"] = 3
    config["model"]["schedule"] = untrusted["hyper_parameters"]["schedule"] = "plateau"
    (RUN / "config.yaml").write_text(yaml.safe_dump(config))
    untrusted["lr_schedulers"] = [
        torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD([torch.zeros(1)]), mode="max").state_dict()
    ]
    precious = tmp_path / "precious"
    precious.touch()
    for path in ("..", str(precious), "../../../precious"):
        for state in untrusted["callbacks"].values():
            if "best_model_path" in state:
                state |= {"best_model_path": path, "kth_best_model_path": path, "last_model_path": path}
                state |= {"best_k_models": {path: torch.tensor(-1.0)}, "dirpath": str(tmp_path)}
        torch.save(untrusted, LAST)
        main("fit --ckpt_path last")
        assert precious.exists()
        assert (RUN / "config.yaml").exists()
        assert names(LAST.parent) == ["best.ckpt", "last.ckpt"]


def test_url_is_not_loaded(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    for scheme, command in {"http": "fit", "https": "validate", "s3": "test", "file": "predict"}.items():
        address = f"{scheme}://127.0.0.1:9/a.ckpt"
        assert "download it first" in error_line(main, f"{command} --ckpt_path {address}", capsys)
        with pytest.raises(UserError, match="download it first"):
            load_classifier(Path(address))


def test_trusted_module_is_imported(untrusted: dict[str, Any], main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    untrusted["hyper_parameters"]["backbone"] = {"class_path": "evil.Net"}
    torch.save(untrusted, "untrusted.ckpt")
    assert "another network" in error_line(main, "test --ckpt_path untrusted.ckpt --trust evil", capsys)
    assert Path("canary").exists()


@pytest.mark.usefixtures("untrusted")
def test_published_weights_are_tested_like_the_checkpoint(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main("publish last mine.safetensors")
    main(f"test --ckpt_path {LAST}")
    expected = accuracy(capsys.readouterr().out)
    shutil.rmtree("lightning_logs")
    main("test --ckpt_path mine.safetensors")
    assert accuracy(capsys.readouterr().out) == expected
    assert equal_weights(
        load("mine.safetensors")["state_dict"], load_classifier(Path("mine.safetensors"))[0].state_dict()
    )
    assert "mine.safetensors" in error_line(main, "fit --ckpt_path mine.safetensors", capsys)
    assert ".safetensors" in error_line(main, "publish mine.safetensors mine.ckpt", capsys)
    content = bytearray(Path("mine.safetensors").read_bytes())
    content[-100] ^= 1
    Path("mine.safetensors").write_bytes(content)
    assert "damaged" in error_line(main, "test --ckpt_path mine.safetensors", capsys)
