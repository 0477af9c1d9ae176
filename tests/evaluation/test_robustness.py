import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mnist_lit.evaluation import robustness

Main = Callable[[str], None]


@pytest.fixture
def square() -> Tensor:
    """Eight images (8, 1, 28, 28) of a white square of 8 px in the middle."""
    images = torch.zeros(8, 1, 28, 28)
    images[:, :, 10:18, 10:18] = 255
    return images


def test_shifts_go_by_whole_pixels_in_four_directions(square: Tensor) -> None:
    right, left, down, up = robustness.shift(square, 3)[:4]
    for image, (rows, columns) in zip((right, left, down, up), ((0, 3), (0, -3), (3, 0), (-3, 0)), strict=True):
        assert torch.equal(image, square[0].roll((rows, columns), dims=(1, 2)))


def test_rotations_go_both_ways() -> None:
    images = torch.rand(2, 1, 28, 28)
    turned = robustness.rotate(images, 90)
    torch.testing.assert_close(turned[0], images[0].rot90(1, dims=(1, 2)), atol=1e-4, rtol=0)
    torch.testing.assert_close(turned[1], images[1].rot90(-1, dims=(1, 2)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("scale", "side"), [(0.5, 4), (1.5, 12)])
def test_scaling_keeps_the_centre(square: Tensor, scale: float, side: int) -> None:
    start, end = 14 - side // 2, 14 + side // 2
    scaled = robustness.resize(square, scale)
    assert scaled[0, 0, start + 1 : end - 1, start + 1 : end - 1].min() == pytest.approx(255)  # but for its soft edge
    assert scaled[0].sum() == pytest.approx(255 * side**2, rel=0.02)


def test_noise_has_its_deviation_and_is_the_same_each_time(square: Tensor) -> None:
    grey = torch.full((100, 1, 28, 28), 128.0)
    noise = robustness.add_noise(grey, 0.1) - grey
    assert noise.std() == pytest.approx(25.5, rel=0.02)
    assert torch.equal(robustness.add_noise(square, 0.1), robustness.add_noise(square, 0.1))


def test_blur_spreads_and_fading_dims(square: Tensor) -> None:
    blurred = robustness.blur(square, 1.0)
    torch.testing.assert_close(blurred.sum(), square.sum())
    profile = blurred[0, 0, 14].double()  # an edge becomes the error function of the distance to it
    expected = 255 / 2 * (1 + torch.erf(torch.tensor((9.5 - 10 + 0.5) / 2**0.5)))
    assert (profile[9] + profile[10]) / 2 == pytest.approx(float(expected), rel=0.01)
    assert torch.equal(robustness.fade(square, 0.5), square / 2)


@pytest.mark.parametrize("pixels", [-1, 1, 2])
def test_strokes_change_their_width_by_pixels(square: Tensor, pixels: int) -> None:
    width = robustness.thicken(square, pixels)[0, 0, 14].sum() / 255
    assert width == pytest.approx(8 + pixels, abs=0.01)


def test_checkpoints_are_measured(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main("fit")
    main("test --ckpt_path last")
    main("robustness best")
    printed = capsys.readouterr().out
    folder = Path("lightning_logs/robustness")
    (measured,) = json.loads((folder / "robustness.json").read_text())
    assert (folder / "robustness.png").stat().st_size > 10_000
    table = (folder / "robustness.md").read_text()
    assert table in printed
    assert measured["checkpoint"] == "lightning_logs/ds_cnn_v1/version_0/checkpoints/best.ckpt"
    assert f"best: {measured['checkpoint']}\n" in printed
    assert measured["model"] == "DS_CNN_V1"
    assert 0 < measured["calibration_error"] < 1
    assert f"{100 * measured['accuracies']['none']['']:.2f}" in table
    assert len(table.splitlines()) == 2 + 1 + 28 + 1 + 2
    with pytest.raises(SystemExit, match="measured on images that it was trained on"):
        main("robustness lightning_logs/ds_cnn_v1/version_0/checkpoints/last.ckpt --data.source=sample")


def test_two_checkpoints_of_one_network_are_told_apart() -> None:
    one: robustness.Robustness = {
        "model": "DS_CNN_V1",
        "checkpoint": "a.ckpt",
        "calibration_error": 0.1,
        "accuracies": {"none": {"": 0.5}},
    }
    assert "| DS_CNN_V1 |" in robustness.table([one])
    table = robustness.table([one, one | {"checkpoint": "b.ckpt"}])
    assert "| DS_CNN_V1 a.ckpt | DS_CNN_V1 b.ckpt |" in table
