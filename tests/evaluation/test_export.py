"""Exported files, run without this package."""

import math
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.commands import Main

from mnist_lit import UserError, commands
from mnist_lit.evaluation import export
from mnist_lit.run.restore import load_classifier

CHECKPOINT = Path(__file__).parents[2] / "lightning_logs/reference/ds_cnn_v3/checkpoints/last.ckpt"


def run_onnx(file: str, images: torch.Tensor) -> torch.Tensor:
    (probabilities,) = onnxruntime.InferenceSession(file).run(None, {"images": images.numpy()})
    assert probabilities.dtype == np.float32
    return torch.from_numpy(probabilities)


def run_opencv(file: str, images: torch.Tensor) -> torch.Tensor:
    network = cv2.dnn.readNetFromONNX(file)
    network.setInput(images.numpy())
    return torch.from_numpy(network.forward())


@pytest.fixture
def images() -> torch.Tensor:
    """Raw images (7, 1, 28, 28), one of them blank."""
    images = torch.randint(0, 256, (7, 1, 28, 28), dtype=torch.uint8)
    images[0] = 0
    return images


def check_file(file: str, images: torch.Tensor, run: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    """Compare a file with the checkpoint for several batch sizes, and look for paths of this machine."""
    model, _ = load_classifier(CHECKPOINT)
    for batch in (images, images[:1], images.repeat(40, 1, 1, 1)):
        with torch.inference_mode():
            torch.testing.assert_close(run(file, batch), model(batch).softmax(dim=1), rtol=0, atol=1e-5)
    assert str(Path(export.__file__).parent).encode() not in Path(file).read_bytes()


def test_onnx_file_predicts_as_the_checkpoint(
    main: Main, images: torch.Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    main(f"export --ckpt_path {CHECKPOINT}")
    printed = capsys.readouterr().out
    assert re.search(r"^digits.onnx: [345]\d,\d{3} bytes; 6,526 parameters in 25,672 bytes", printed)
    assert "of 100 test images" in printed
    assert "0 digits predicted differently" in printed
    onnx.checker.check_model("digits.onnx", full_check=True)
    assert [(part.domain, part.version) for part in onnx.load("digits.onnx").opset_import] == [("", export.OPSET)]
    check_file("digits.onnx", images, run_onnx)
    if int(cv2.__version__.split(".")[0]) >= 5:  # OpenCV 4 cannot read what older versions of torch export
        check_file("digits.onnx", images, run_opencv)


@pytest.mark.parametrize("options", ["--data.data_dir nowhere", "--data.source sample"])
def test_file_is_checked_on_the_sample_where_mnist_is_missing(
    main: Main, capsys: pytest.CaptureFixture[str], options: str
) -> None:
    main(f"export --ckpt_path {CHECKPOINT} --format torch {options}")
    printed = capsys.readouterr().out
    assert "of 500 training images (the sample) correct" in printed
    assert ("MNIST is not in nowhere: the file is compared with the checkpoint on the sample." in printed) == (
        "nowhere" in options
    )
    assert Path("digits.pt2").exists()
    assert not Path("nowhere").exists()


@pytest.mark.slow
def test_torch_file_predicts_as_the_checkpoint(main: Main, images: torch.Tensor) -> None:
    main(f"export --ckpt_path {CHECKPOINT} --format torch --output net.pt2")
    check_file("net.pt2", images, lambda file, batch: torch.export.load(file).module()(batch))


@pytest.mark.slow
def test_int8_file_has_small_weights_and_nearly_the_accuracy_of_the_checkpoint(
    official_mnist: str, main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    main(f"export --ckpt_path {CHECKPOINT} --format int8 --data.data_dir {official_mnist}")
    ((accuracy, expected),) = re.findall(
        r"([\d.]+) % of 10,000 test images correct, checkpoint ([\d.]+) %", capsys.readouterr().out
    )
    assert float(accuracy) == pytest.approx(float(expected), abs=0.05)
    onnx.checker.check_model("digits_int8.onnx", full_check=True)
    tensors = [tensor for tensor in onnx.load("digits_int8.onnx").graph.initializer if "backbone" in tensor.name]
    assert sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in tensors) < 10_000
    sizes = [math.prod(tensor.dims) for tensor in tensors if tensor.data_type == onnx.TensorProto.INT8]
    assert sum(sizes) >= 18 * 9 + 18 * 36 * 9 + 360


def test_difference_between_file_and_checkpoint_is_an_error() -> None:
    images, labels = torch.zeros(4, 1, 28, 28), torch.tensor([0, 0, 1, 1])
    ours = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.1, 0.9], [0.6, 0.4]])
    close, other = ours - 1e-6, ours.flip(1)
    report = export.compare(lambda _: close, lambda _: ours, images, labels, tolerance=1e-5)
    assert report.startswith("75.00 % of 4 test images correct, checkpoint 75.00 %; 0 digits predicted differently")
    with pytest.raises(UserError, match="predicts 0 digits differently"):
        export.compare(lambda _: close, lambda _: ours, images, labels, tolerance=1e-7)
    with pytest.raises(UserError, match="predicts 4 digits differently"):
        export.compare(lambda _: other, lambda _: ours, images, labels, tolerance=1)
    report = export.compare(lambda _: other, lambda _: ours, images, labels, tolerance=math.inf)
    assert report.startswith("25.00 % of 4 test images correct, checkpoint 75.00 %; 4 digits predicted differently")


@pytest.mark.usefixtures("main")
def test_failed_check_leaves_an_existing_file_unchanged() -> None:
    Path("digits.pt2").write_text("earlier")
    options = commands.parse("export", ["--ckpt_path", str(CHECKPOINT), "--format", "torch"])
    with pytest.raises(UserError, match="predicts 0 digits differently"):
        export.main(options, tolerance=-1)
    assert Path("digits.pt2").read_text() == "earlier"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--output no/digits.onnx", "there is no folder no"),
        ("--output digits.pt2", "ends in .onnx"),
    ],
)
def test_export_refuses_unsuitable_options(main: Main, options: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(f"export --ckpt_path {CHECKPOINT} {options}")
    assert not Path("digits.onnx").exists()
