import json
import shlex
from pathlib import Path

import pytest
import torch
from helpers.commands import Main
from torch import Tensor

from mnist_lit.evaluation import robustness

CHECKPOINT = Path(__file__).parents[2] / "lightning_logs/reference/ds_cnn_v3/checkpoints/last.ckpt"


@pytest.fixture
def square() -> Tensor:
    """Eight images (8, 1, 28, 28) of a white square of 8 px in the middle."""
    images = torch.zeros(8, 1, 28, 28)
    images[:, :, 10:18, 10:18] = 255
    return images


def test_shift_moves_by_whole_pixels_in_four_directions(square: Tensor) -> None:
    right, left, down, up = robustness.shift(square, 3)[:4]
    for image, (rows, columns) in zip((right, left, down, up), ((0, 3), (0, -3), (3, 0), (-3, 0)), strict=True):
        assert torch.equal(image, square[0].roll((rows, columns), dims=(1, 2)))


def test_rotate_turns_images_both_ways() -> None:
    images = torch.rand(2, 1, 28, 28)
    rotated = robustness.rotate(images, 90)
    torch.testing.assert_close(rotated[0], images[0].rot90(1, dims=(1, 2)), atol=1e-4, rtol=0)
    torch.testing.assert_close(rotated[1], images[1].rot90(-1, dims=(1, 2)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("factor", "side"), [(0.5, 4), (1.5, 12)])
def test_scale_preserves_the_center(square: Tensor, factor: float, side: int) -> None:
    start, end = 14 - side // 2, 14 + side // 2
    scaled = robustness.scale(square, factor)
    assert scaled[0, 0, start + 1 : end - 1, start + 1 : end - 1].min() == pytest.approx(255)  # inside the soft edge
    assert scaled[0].sum() == pytest.approx(255 * side**2, rel=0.02)


def test_noise_has_the_given_deviation_and_is_the_same_each_time(square: Tensor) -> None:
    gray = torch.full((100, 1, 28, 28), 128.0)
    noise = robustness.add_noise(gray, 0.1) - gray
    assert noise.std() == pytest.approx(25.5, rel=0.02)
    assert torch.equal(robustness.add_noise(square, 0.1), robustness.add_noise(square, 0.1))


def test_blur_is_gaussian(square: Tensor) -> None:
    blurred = robustness.blur(square, 1.0)
    torch.testing.assert_close(blurred.sum(), square.sum())
    profile = blurred[0, 0, 14].double()  # across an edge, the error function of the distance to it
    expected = 255 / 2 * (1 + torch.erf(torch.tensor((9.5 - 10 + 0.5) / 2**0.5)))
    assert (profile[9] + profile[10]) / 2 == pytest.approx(float(expected), rel=0.01)


@pytest.mark.parametrize("pixels", [-1, 1, 2])
def test_thicken_changes_the_width_of_strokes_by_pixels(square: Tensor, pixels: int) -> None:
    width = robustness.thicken(square, pixels)[0, 0, 14].sum() / 255
    assert width == pytest.approx(8 + pixels, abs=0.01)


@pytest.mark.parametrize("name", robustness.DISTORTIONS)
def test_distortions_change_images_and_preserve_their_shape(square: Tensor, name: str) -> None:
    distort, form, strengths = robustness.DISTORTIONS[name]
    for strength in strengths:
        distorted = distort(square, strength)
        assert distorted.shape == square.shape
        assert not torch.equal(distorted, square)
    assert len({form.format(strength) for strength in strengths}) == len(strengths)


def test_robustness_measures_a_checkpoint(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    main(f"robustness {CHECKPOINT}")
    folder = Path("lightning_logs/robustness")
    (measured,) = json.loads((folder / "robustness.json").read_text())
    assert (measured["model"], measured["checkpoint"]) == ("DS_CNN_V3", str(CHECKPOINT))
    assert 0 < measured["calibration_error"] < 1
    text = (folder / "robustness.md").read_text()
    assert f"{100 * measured['accuracies']['none']['']:.2f}" in text
    assert text.count("\n") == 2 + 1 + 28 + 1 + 2
    assert text in capsys.readouterr().out
    assert (folder / "robustness.png").stat().st_size > 10_000


def test_held_out_images_are_those_of_each_run_and_recipes_are_averaged(
    main: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("recipe.yaml").write_text("model: {backbone: {class_path: mnist_lit.backbones.DS_CNN_V2}, image_size: 8}\n")
    main("compare recipe.yaml --folds 2 --change model.backbone.activation=squared_relu --trainer.max_epochs=1")
    folder = Path("lightning_logs/compare/version_0")
    runs = json.loads((folder / "results.json").read_text())
    checkpoints = sorted(map(str, folder.glob("*/seed_42/fold_*/checkpoints/last.ckpt")))
    main(f"robustness --split val {shlex.join(checkpoints)}")
    measured = json.loads(Path("lightning_logs/robustness/robustness.json").read_text())
    accuracies = [one["accuracies"]["none"][""] for one in measured]
    means = [sum(run["val_accuracy"] for run in two) / 2 for two in (runs[:2], runs[2:])]
    assert sorted(accuracies) == pytest.approx(sorted(means))
    assert "300 held-out training images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (f"{CHECKPOINT} --data.source=sample", "measured on images that it was trained on"),
        ("--trust torch", "Name the checkpoints before --trust"),
        ("", "Name a checkpoint"),
    ],
)
def test_robustness_refuses_unsuitable_options(main: Main, options: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(f"robustness {options}")


def test_two_checkpoints_of_one_network_are_distinguished() -> None:
    one: robustness.Robustness = {
        "model": "DS_CNN_V1",
        "checkpoint": "a.ckpt",
        "calibration_error": 0.1,
        "accuracies": {"none": {"": 0.5}},
    }
    assert "| DS_CNN_V1 |" in robustness.table([one])
    table = robustness.table([one, one | {"checkpoint": "b.ckpt"}])
    assert "| DS_CNN_V1 a.ckpt | DS_CNN_V1 b.ckpt |" in table
