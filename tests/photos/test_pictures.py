"""Picture files of all formats are opened alike."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.paper import seven
from PIL import Image
from PIL.ImageOps import invert

from mnist_lit.photos.mnist_form import photo_to_digit
from mnist_lit.photos.pictures import UnreadableError, open_picture


def _rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be rotated by 90° clockwise
    seven().rotate(90, expand=True).save(path, exif=exif)


def _palette(path: Path) -> None:
    image = seven("P", 0, 1)
    image.putpalette([0, 0, 0, 0, 0, 0])  # black on black, which only transparency distinguishes
    image.save(path, transparency=0)


def _16_bit(path: Path) -> None:
    values = np.where(np.asarray(seven()) > 128, 1100, 400).astype(np.uint16)
    Image.fromarray(values).save(path)


FORMS: dict[str, Callable[[Path], None]] = {
    "gray.png": lambda path: seven().save(path),
    "light_on_dark.png": lambda path: invert(seven()).save(path),
    "1_bit.png": lambda path: seven("1", 1, 0).save(path),
    "ink_on_transparent.png": lambda path: seven("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)).save(path),
    "light_ink_on_transparent.png": lambda path: seven("LA", (255, 0), (255, 255)).save(path),
    "palette.png": _palette,
    "palette.gif": _palette,
    "16_bit.png": _16_bit,
    "16_bit.tif": _16_bit,
    "float.tif": lambda path: Image.fromarray(np.asarray(seven(), np.float32) / 255).save(path),
    "cmyk.jpg": lambda path: seven("CMYK", (0, 0, 0, 0), (0, 255, 255, 0)).save(path),
    "rotated.jpg": _rotated,
    "yellow.webp": lambda path: seven("RGB", (255, 255, 255), (255, 235, 60)).save(path, lossless=True),
    "red_on_green.bmp": lambda path: seven("RGB", (20, 140, 20), (220, 30, 30)).save(path),
    "large.png": lambda path: seven().resize((2400, 3200)).save(path),
    "tiny.png": lambda path: seven().resize((21, 28), Image.Resampling.LANCZOS).save(path),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_format_gives_the_same_digit(name: str, tmp_path: Path) -> None:
    FORMS[name](tmp_path / name)
    plain = photo_to_digit(seven("RGB", (255, 255, 255), (0, 0, 0))).astype(float)
    image = photo_to_digit(open_picture(tmp_path / name)).astype(float)
    assert np.abs(image - plain).mean() < (8 if name in ("tiny.png", "large.png") else 4)


def _truncated(path: Path) -> None:
    seven().save(path)
    path.write_bytes(path.read_bytes()[:150])


UNREADABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.png": (_truncated, "cannot be read"),
    "empty.jpg": (Path.touch, "not a picture"),
    "text.png": (lambda path: path.write_text("7"), "not a picture"),
    "postscript.jpg": (lambda path: seven().save(path, "EPS"), "not a picture in a common format"),
    "huge.png": (lambda path: Image.new("1", (10_001, 5_001)).save(path), "more than 50 megapixels"),
    "huger.png": (lambda path: Image.new("1", (20_000, 10_001)).save(path), "more than 50 megapixels"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_gives_one_line(name: str, tmp_path: Path) -> None:
    make, reason = UNREADABLE[name]
    make(tmp_path / name)
    with pytest.raises(UnreadableError, match=reason) as error:
        open_picture(tmp_path / name)
    assert "\n" not in str(error.value)
