"""Exported files, read without this package."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mnist_lit import UserError, cli
from mnist_lit.classifier import DigitClassifier
from mnist_lit.data.datamodule import MNISTDataModule
from mnist_lit.evaluation import export

Main = Callable[[str], None]
CHECKPOINT = "lightning_logs/ds_cnn_v1/version_0/checkpoints/last.ckpt"


@pytest.fixture
def trained(main: Main) -> Main:
    main("fit --model.image_size=16 --model.deskew=true --model.center=true --model.rescale=true")
    return main


def test_what_is_exported_reads_as_the_checkpoint_does(trained: Main, capsys: pytest.CaptureFixture[str]) -> None:
    trained("export --ckpt_path last")
    trained(f"export --ckpt_path {CHECKPOINT} --format torch --output net.pt2")
    trained(f"export --ckpt_path {CHECKPOINT} --format int8")
    printed = capsys.readouterr().out
    assert printed.count("% of 100 test images, the checkpoint") == 3
    assert printed.count("0 digits read otherwise") >= 2
    assert f"last: {CHECKPOINT}\n" in printed
    assert "digits.onnx: " in printed
    assert "5,226 parameters in 20" in printed
    model = DigitClassifier.load_from_checkpoint(CHECKPOINT, map_location="cpu").eval()
    onnx.checker.check_model("digits.onnx", full_check=True)
    session, lossy = (onnxruntime.InferenceSession(file) for file in ("digits.onnx", "digits_int8.onnx"))
    network = torch.export.load("net.pt2").module()
    generator = np.random.default_rng(0)
    for count in (1, 7, 300):
        images = generator.integers(0, 256, (count, 1, 28, 28), dtype=np.uint8)
        images[0] = 0  # a blank image
        with torch.inference_mode():
            expected = model(torch.from_numpy(images)).softmax(1).numpy()
            assert np.abs(network(torch.from_numpy(images)).numpy() - expected).max() < 1e-5
        (probabilities,) = session.run(None, {"images": images})
        assert probabilities.dtype == np.float32
        assert np.abs(probabilities - expected).max() < 1e-5
        assert np.abs(lossy.run(None, {"images": images})[0] - expected).mean() < 0.05
    weights = [
        tensor for tensor in onnx.load("digits_int8.onnx").graph.initializer if "weight_quantized" in tensor.name
    ]
    sizes = [np.prod(tensor.dims) for tensor in weights if tensor.data_type == onnx.TensorProto.INT8]
    assert sum(sizes) >= 16 * 9 + 16 * 32 * 9 + 320
    for file in ("digits.onnx", "digits_int8.onnx", "net.pt2"):
        assert str(Path(export.__file__).parent).encode() not in Path(file).read_bytes()


@pytest.mark.slow
def test_the_reference_is_exported_as_told(official_mnist: str, main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = Path(__file__).parents[2] / "lightning_logs/reference/ds_cnn_v3/checkpoints/last.ckpt"
    for kind in ("onnx", "int8"):
        main(f"export --ckpt_path {checkpoint} --format {kind} --data.data_dir {official_mnist}")
    exact, lossy = re.findall(r"([\d.]+) % of 10,000 test images, the checkpoint ([\d.]+) %", capsys.readouterr().out)
    assert exact[0] == exact[1]
    assert float(lossy[0]) == pytest.approx(float(lossy[1]), abs=0.05)
    weights = [tensor for tensor in onnx.load("digits_int8.onnx").graph.initializer if "backbone" in tensor.name]
    assert sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in weights) < 10_000


def test_a_failed_export_leaves_what_was_there(trained: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: MNISTDataModule, stage: str) -> None:
        if stage == "fit":
            raise UserError("no training images")
        setup(data, stage)

    Path("digits.onnx").write_text("earlier")
    setup = MNISTDataModule.setup
    monkeypatch.setattr(MNISTDataModule, "setup", fail)
    monkeypatch.setattr(export, "TOLERANCE", -1)
    for options, told in (("", "it reads 0 digits otherwise"), ("--format int8", "no training images")):
        with pytest.raises(SystemExit, match=told):
            trained(f"export --ckpt_path {CHECKPOINT} {options}")
    assert Path("digits.onnx").read_text() == "earlier"
    assert not Path("digits_int8.onnx").exists()


def test_mistakes_in_an_export_are_told(trained: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "TOLERANCE", -1)
    for options, told in (
        ("", "it reads 0 digits otherwise"),
        ("--output no/digits.onnx", "there is no folder no"),
        ("--output digits.pt2", "ends in .onnx"),
        ("--data.source sample", "measured on images"),
    ):
        with pytest.raises(SystemExit, match=told):
            trained(f"export --ckpt_path {CHECKPOINT} {options}")
        assert not Path("digits.onnx").exists()


@pytest.mark.parametrize(
    ("module", "extra", "line"),
    [("evaluation.export", "onnx", ["export", "--ckpt_path", "x"]), ("photos.mnist_form", "cv2", [])],
)
def test_a_missing_extra_is_told(module: str, extra: str, line: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    monkeypatch.delitem(sys.modules, f"mnist_lit.{module}", raising=False)
    if line:
        with pytest.raises(SystemExit, match="uv run --extra export"):
            cli.main(line)
    else:
        with pytest.raises(UserError, match="uv run --extra photos"):
            __import__(f"mnist_lit.{module}")
