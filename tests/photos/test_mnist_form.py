"""Digits on paper are found and brought into MNIST's form."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from helpers.paper import DIGITS, Array, Picture, picture, seven
from helpers.pens import pair, penned
from PIL import Image, ImageDraw

from mnist_lit.command_parser import READERS
from mnist_lit.files import project_path
from mnist_lit.photos.mnist_form import drawing_to_digit, photo_to_digit, to_mnist_form
from mnist_lit.photos.pictures import UnreadableError
from mnist_lit.run.restore import load_classifier


def classify(images: list[Array]) -> Array:
    model, _ = load_classifier(project_path(READERS[-1]))
    with torch.inference_mode():
        classes: Array = model(torch.from_numpy(np.stack(images))[:, None]).argmax(1).numpy()
    return classes


def read(pictures: list[Picture]) -> Array:
    """Whether each picture is read right."""
    images = []
    for one in pictures:
        try:
            images.append(photo_to_digit(one.image))
        except UnreadableError:
            images.append(np.zeros((28, 28), np.uint8))
    is_right: Array = (classify(images) == [one.digit for one in pictures]) & np.any(images, axis=(1, 2))
    return is_right


def check_accuracy(seeds: range, held_out: bool, minimum: float) -> None:
    pictures = [picture(seed, held_out) for seed in seeds]
    is_right = read(pictures)
    kinds = [(one.source, one.paper) for one in pictures]
    total = Counter(kind for pair in kinds for kind in pair)
    right = Counter(kind for pair, is_read in zip(kinds, is_right, strict=True) if is_read for kind in pair)
    print({"all": np.mean(is_right)} | {kind: f"{right[kind]} of {total[kind]}" for kind in total})
    assert np.mean(is_right) >= minimum, right


def is_refused(form: Callable[[Image.Image], Array], image: Image.Image) -> bool:
    """Whether several digits are seen in an image."""
    try:
        form(image)
    except UnreadableError as error:
        return "several digits" in str(error)
    return False


def test_tuned_pictures_of_paper_are_read() -> None:
    check_accuracy(range(0, 300, 29), held_out=False, minimum=0.9)


@pytest.mark.slow
def test_300_held_out_pictures_of_paper_are_read() -> None:
    # errors in the first 1,000 held-out pictures (seeds 0 to 999) were looked at and fixed
    check_accuracy(range(10_000, 10_300), held_out=True, minimum=0.97)


@pytest.mark.parametrize("kind", ["screen", "paper", "gaps", "bar", "light"])
def test_a_pen_of_any_width_is_read(kind: str) -> None:
    assert read([penned(kind, seed, held_out=False) for seed in range(10)]).sum() >= 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "count", "minimum"),
    [
        ("screen", 60, 0.93),
        ("paper", 60, 0.95),
        ("gaps", 100, 0.92),
        ("bar", 100, 0.96),
        ("dashed", 40, 0.8),
        ("two-toned", 40, 0.85),
        ("faint", 40, 0.9),
        ("light", 40, 0.92),
    ],
)
def test_480_held_out_pictures_in_all_pens_are_read(kind: str, count: int, minimum: float) -> None:
    pictures = [penned(kind, seed, held_out=True) for seed in range(40_000, 40_000 + count)]
    is_right = read(pictures)
    thin = np.array([float(one.paper) < 0.0175 for one in pictures])
    print(f"{kind}: {is_right.sum()} of {count}; of pens below 1.75 %, {is_right[thin].sum()} of {thin.sum()}")
    assert is_right.mean() >= minimum


@pytest.mark.slow
def test_150_held_out_pairs_of_digits_are_refused() -> None:
    pictures = [pair(seed, held_out=True) for seed in range(40_000, 40_150)]
    photos = np.array([is_refused(photo_to_digit, one.image) for one in pictures])
    drawings = np.array([is_refused(drawing_to_digit, one.image) for one in pictures if one.paper == "screen"])
    print(f"pairs: {photos.sum()} of {len(photos)} as photos, {drawings.sum()} of {len(drawings)} as drawings")
    assert photos.mean() >= 0.95
    assert drawings.mean() >= 0.95


def test_a_drawing_of_two_digits_is_refused() -> None:
    assert is_refused(drawing_to_digit, _two())
    assert is_refused(drawing_to_digit, pair(0, held_out=False).image)  # 11 on a screen


def test_a_drawing_of_two_strokes_is_one_digit() -> None:
    drawing = Image.new("L", (280, 280), 255)
    pen = ImageDraw.Draw(drawing)
    pen.line([(90, 60), (190, 50)], width=20)  # the bar of a 5, drawn first and on its own
    drawing_to_digit(drawing)
    pen.line([(90, 75), (85, 130), (170, 140), (160, 220), (80, 225)], width=20)
    assert classify([drawing_to_digit(drawing)]) == [5]


def test_mnist_images_keep_their_stroke_width_and_class() -> None:
    originals = DIGITS[0][::100].reshape(-1, 28, 28).astype(np.uint8)
    images = [photo_to_digit(Image.fromarray(original).convert("RGB")) for original in originals]
    assert np.mean(images) / originals.mean() == pytest.approx(1, abs=0.1)
    assert (classify(images) == DIGITS[1][::100]).mean() > 0.95


def test_a_digit_is_20_pixels_long_and_centered_by_mass() -> None:
    image = photo_to_digit(seven().convert("RGB"))
    rows, columns = np.nonzero(image > 60)
    assert max(np.ptp(rows), np.ptp(columns)) in (18, 19)
    assert image.shape == (28, 28)
    assert image.dtype == np.uint8
    mass = image / image.sum()
    assert abs((mass.sum(1) @ np.arange(28)) - 13.5) < 1
    assert abs((mass.sum(0) @ np.arange(28)) - 13.5) < 1


def test_a_sheet_photographed_askew_on_a_table_is_straightened() -> None:
    sheet = np.array([[0, 0], [120, 0], [120, 160], [0, 160]], np.float32)
    in_photo = np.array([[140, 40], [340, 120], [220, 400], [40, 310]], np.float32)
    transform = cv2.getPerspectiveTransform(sheet, in_photo)
    photo = cv2.warpPerspective(np.asarray(seven()), transform, (400, 440), borderValue=60)
    difference = photo_to_digit(Image.fromarray(photo).convert("RGB")).astype(float)
    difference -= photo_to_digit(seven().convert("RGB"))
    assert np.abs(difference).mean() < 8


def test_invert_overrides_the_automatic_choice() -> None:
    ring = Image.new("RGB", (200, 200), (255, 255, 255))  # a white 0 on black, or a black blot with a white ring in it
    ImageDraw.Draw(ring).ellipse((20, 20, 180, 180), fill=(0, 0, 0))
    ImageDraw.Draw(ring).ellipse((60, 40, 140, 160), outline=(255, 255, 255), width=12)
    light, dark = photo_to_digit(ring, invert=True), photo_to_digit(ring, invert=False)
    assert np.abs(light.astype(float) - dark).mean() > 20


def _two() -> Image.Image:
    image = Image.new("L", (300, 160), 255)
    image.paste(seven(), (10, 0))
    image.paste(seven(), (150, 0))
    return image


def _noisy_paper() -> Image.Image:
    noise = np.random.default_rng(0).normal(0, 6, (300, 400))
    return Image.fromarray((200 + np.linspace(0, 40, 400) + noise).clip(0, 255).astype(np.uint8))


NO_DIGIT: dict[str, tuple[Callable[[], Image.Image], str]] = {
    "paper": (_noisy_paper, "blank"),
    "white": (lambda: Image.new("L", (90, 90), 255), "blank"),
    "black": (lambda: Image.new("L", (90, 90), 0), "blank"),
    "two digits": (_two, "several digits"),
    "thin": (lambda: Image.new("L", (2_000, 9)), "2000 x 9 pixels"),
}


@pytest.mark.parametrize("name", NO_DIGIT)
def test_a_picture_without_one_digit_is_unreadable(name: str) -> None:
    make, reason = NO_DIGIT[name]
    with pytest.raises(UnreadableError, match=reason):
        photo_to_digit(make().convert("RGB"))


def test_a_faint_hair_is_unreadable() -> None:
    hair = np.zeros((100, 100))
    hair[50, 20:80] = 0.51
    with pytest.raises(UnreadableError, match="too thin and faint"):
        to_mnist_form(hair, threshold=0.5)


def test_a_picture_full_of_lines_is_read_in_seconds() -> None:
    ink = np.random.default_rng(0).random((1000, 1000)) < 0.8
    process_s = time.process_time()
    with contextlib.suppress(UnreadableError):
        photo_to_digit(Image.fromarray(np.where(ink, 0, 255).astype(np.uint8)).convert("RGB"))
    assert time.process_time() - process_s < 30  # two minutes before the number of lines was limited


def test_an_error_of_opencv_makes_a_picture_unreadable() -> None:
    with pytest.raises(UnreadableError, match=r"^cannot be read \(OpenCV.*\)$"):
        photo_to_digit(seven("L"))  # not RGB
