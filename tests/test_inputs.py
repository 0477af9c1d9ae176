"""Images and weights in forms that people bring."""

from typing import Any

import pytest
import torch
from helpers.bare import fit, loader
from torch import Tensor

from mnist_lit import UserError
from mnist_lit.backbones import DS_CNN_V2
from mnist_lit.classifier import DigitClassifier
from mnist_lit.inputs import ImageCheck

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, for example of a fit without validation


@pytest.fixture
def model() -> DigitClassifier:
    torch.manual_seed(0)
    return DigitClassifier(DS_CNN_V2(), image_size=16, deskew=True).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randint(256, (6, 1, 28, 28), dtype=torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_pixels_of_any_type_are_read_alike(model: DigitClassifier, images: Tensor, dtype: torch.dtype) -> None:
    assert torch.equal(model(images.to(dtype)), model(images))
    assert torch.equal(model(images.to(dtype) * 0), model(images * 0))  # blank images


@pytest.mark.parametrize(
    "scale",
    [
        pytest.param(lambda x: x.float() / 255, id="ToTensor"),
        pytest.param(lambda x: (x.double() / 255 - 0.1307) / 0.3081, id="Normalize"),
        pytest.param(lambda x: x.float() / 127.5 - 1, id="-1..1"),
        pytest.param(lambda x: x > 127, id="bool"),
    ],
)
def test_pixels_on_another_scale_are_refused(model: DigitClassifier, images: Tensor, scale: Any) -> None:
    with pytest.raises(UserError, match=r"Pixels must be 0\.\.255.* multiply images 0\.\.1 by 255"):
        model(scale(images))
    with pytest.raises(UserError, match=r"Pixels must be 0\.\.255"):
        fit(model, loader(scale(images), torch.arange(6)))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda x: x[0, 0], id="28x28"),
        pytest.param(lambda x: x[:, 0], id="Nx28x28"),
        pytest.param(lambda x: x.repeat(1, 3, 1, 1), id="RGB"),
        pytest.param(lambda x: x.permute(0, 2, 3, 1), id="NHWC"),
        pytest.param(lambda x: x[:, :, 2:, 2:], id="26x26"),
        pytest.param(lambda x: x.flatten(1), id="flat"),
        pytest.param(lambda x: x.numpy(), id="numpy"),
        pytest.param(str, id="key of a dict"),
    ],
)
def test_other_shapes_are_refused_by_one_message(model: DigitClassifier, images: Tensor, change: Any) -> None:
    for stage in (model, lambda x: model.training_step((x, torch.arange(6)), 0)):
        with pytest.raises(UserError, match=r"Images must be a tensor \(N, 1, 28, 28\).* not [^\n]*\.$"):
            stage(change(images))


def test_values_on_a_gpu_are_checked_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGPU(Tensor):
        device: Any = torch.device("cuda")

    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    check, images = ImageCheck(), torch.rand(2, 1, 28, 28).as_subclass(OnGPU)
    for seconds, is_checked in ((0.0, True), (0.5, False), (1.5, True)):
        clock[0] = seconds
        if is_checked:
            with pytest.raises(UserError, match="Pixels"):
                check(images)
        else:
            check(images)


@pytest.mark.slow  # torch's compiler takes seconds
def test_checks_do_not_disturb_compilers(model: DigitClassifier, images: Tensor) -> None:
    expected = model(images)
    for given in (images, images.float()):
        for compiled in (
            torch.compile(model, fullgraph=True, backend="eager"),
            torch.export.export(model, (given,)).module(),
        ):
            torch.testing.assert_close(compiled(given), expected)


def test_weights_of_compiled_modules_load_into_others(model: DigitClassifier) -> None:
    whole: Any = torch.compile(model, backend="eager")
    part = DigitClassifier(DS_CNN_V2(), image_size=16)
    part.backbone = torch.compile(part.backbone, backend="eager")  # type: ignore[assignment]
    part.load_state_dict(model.state_dict())
    for weights in (whole.state_dict(), part.state_dict()):
        assert all("_orig_mod." in name for name in weights if "backbone" in name)
        other = DigitClassifier(DS_CNN_V2())
        other.load_state_dict(weights)
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({"_orig_mod.backbone.other": torch.zeros(1)})
