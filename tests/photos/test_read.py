"""`mnist-lit read` through the real command line."""

import csv
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.paper import FONTS, Array, picture, seven
from PIL import Image, ImageDraw, ImageFont

from mnist_lit import cli
from mnist_lit.command_parser import READERS, REFERENCE
from mnist_lit.data import official
from mnist_lit.data.variants import add_variants
from mnist_lit.files import project_path
from mnist_lit.photos.mnist_form import drawing_to_digit
from mnist_lit.photos.read import is_unlike_digits, load_digits
from mnist_lit.run.restore import load_classifier


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with pictures in `mine`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    seven().save("mine/it's a, seven [1].png")
    picture(14, True).image.save("mine/four.jpg")
    return tmp_path


LETTERS = "aACdDeEfFgGhHJkKLmMnNpPQrRtTuUvVwWxXyY"
"""Without those that look like a digit."""


def letter(character: str) -> Array:
    image = Image.new("L", (280, 280), 255)
    font = ImageFont.truetype(str(FONTS / "DejaVuSans.ttf"), 180)
    ImageDraw.Draw(image).text((140, 140), character, 0, font, anchor="mm")
    return drawing_to_digit(image)


def rows() -> list[dict[str, str]]:
    with Path("predictions.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("folder")
def test_read_writes_a_table_and_a_contact_sheet(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["read", "mine", "--show"])
    out, err = capsys.readouterr()
    assert err == ""
    head = [cell.strip() for cell in out.splitlines()[0].split("|")[1:-1]]
    assert head == ["file", "digit", "confidence", "second guess", "second confidence", "unlike digits"]
    assert "it's a, seven [1].png" in out
    assert "Saved predictions.csv and predictions.png" in out
    assert [(row["file"], row["digit"]) for row in rows()] == [
        ("mine/four.jpg", "4"),
        ("mine/it's a, seven [1].png", "7"),
    ]
    assert all(1 >= float(row["confidence"]) > float(row["second_confidence"]) for row in rows())
    assert [row["unlike_digits"] for row in rows()] == ["no", "no"]
    with Image.open("predictions.png") as sheet:
        assert sheet.width > 200


@pytest.mark.usefixtures("folder")
def test_unreadable_files_are_reported_and_the_others_read(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine/notes.txt").write_text("Tuesday")
    Path("empty").mkdir()
    with pytest.raises(SystemExit) as end:
        cli.main(["read", "mine/four.jpg", "mine/*seven*", "mine", "nowhere", "empty"])
    assert end.value.code == 1
    assert capsys.readouterr().err.splitlines() == [
        "mnist-lit: error: nowhere: no such file.",
        "mnist-lit: error: empty: no files in this folder.",
        "mnist-lit: error: mine/notes.txt: not a picture in a common format, such as JPEG or PNG.",
    ]
    assert [row["digit"] for row in rows()] == ["4", "7"]
    assert not Path("predictions.png").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
@pytest.mark.usefixtures("folder")
def test_file_names_may_hold_any_bytes(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    names = [b"mine/\xff\x1b[31m.jpg", b"mine/two\nlines $x$.jpg"]
    for name in names:
        shutil.copy("mine/four.jpg", os.fsdecode(name))
        Path(os.fsdecode(name) + ".txt").touch()
    with pytest.raises(SystemExit) as end:
        cli.main(["read", "mine", "--show"])
    assert end.value.code == 1
    out, err = capfdbinary.readouterr()
    assert b"\x1b" not in out + err
    assert out.count(b"\n| ") == err.count(b"\n") + 2 == 4
    assert all(name in Path("predictions.csv").read_bytes() for name in names)


@pytest.mark.usefixtures("folder")
def test_a_pattern_matches_no_folders_and_the_sheet_has_a_limit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_lit.photos.read.MAX_SHOWN", 1)
    Path("mine/other").mkdir()
    cli.main(["read", "mine/*", "--show"])
    assert [row["digit"] for row in rows()] == ["4", "7"]
    assert "predictions.png (the first 1)" in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
def test_a_folder_without_permission_is_reported_and_the_others_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder.name == "secret":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listed(folder)

    Path("secret").mkdir()
    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(SystemExit) as end:
        cli.main(["read", "secret", "mine"])
    assert end.value.code == 1
    assert capsys.readouterr().err == "mnist-lit: error: secret: cannot be read (Permission denied).\n"
    assert [row["digit"] for row in rows()] == ["4", "7"]


@pytest.mark.usefixtures("folder")
def test_json_has_digits_and_errors_and_is_all_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    last = Path("lightning_logs/ds_cnn_v3/version_0/checkpoints/last.ckpt")
    last.parent.mkdir(parents=True)
    shutil.copy(project_path(READERS[-1]), last)
    with pytest.raises(SystemExit) as end:
        cli.main(["read", "--json", "--ckpt_path=last", "mine/four.jpg", "nowhere"])
    assert end.value.code == 1
    out, err = capsys.readouterr()
    answer = json.loads(out)
    (four,) = answer["pictures"]
    assert (four["file"], four["digit"], four["unlike_digits"]) == ("mine/four.jpg", 4, False)
    assert answer["errors"] == [{"file": "nowhere", "error": "no such file"}]
    assert err == f"last: {last}\nmnist-lit: error: nowhere: no such file.\n"
    assert not Path("predictions.csv").exists()


@pytest.mark.usefixtures("folder")
def test_a_progress_bar_is_shown_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for variable in ("TTY_COMPATIBLE", "TTY_INTERACTIVE", "FORCE_COLOR"):  # rich reads them
        monkeypatch.delenv(variable, raising=False)
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda value=is_terminal: value)
        load_digits(["mine"])
        assert ("Reading pictures" in capsys.readouterr().err) == is_terminal


def test_letters_are_unlike_digits_and_digits_are_not(official_mnist: str) -> None:
    model, _ = load_classifier(project_path(READERS[-1]))
    images, _ = official.read_part(Path(official_mnist), "test")
    with torch.inference_mode():
        digits = is_unlike_digits(model(images.view(-1, 1, 28, 28)))
        letters = is_unlike_digits(model(torch.from_numpy(np.stack(list(map(letter, LETTERS))))[:, None]))
    print(f"unlike digits: {digits.sum()} of 10,000 test images, {letters.sum()} of {len(LETTERS)} letters")
    assert digits.float().mean() < 0.03
    assert letters.float().mean() > 0.4


def test_rare_ways_to_write_1_7_and_9_are_read(official_mnist: str) -> None:
    images, labels = official.read_part(Path(official_mnist), "train")
    is_rare = torch.isin(labels[-5000:], torch.tensor([1, 7, 9]))  # of the validation images
    images, labels = images[-5000:][is_rare], labels[-5000:][is_rare]
    varied = add_variants(images, labels, share=1)
    shares = []
    for file in (READERS[-1], REFERENCE):
        model, _ = load_classifier(project_path(file))
        with torch.inference_mode():
            is_right = model(varied).argmax(dim=1) == labels
        shares.append({digit: is_right[labels == digit].float().mean().item() for digit in (1, 7, 9)})
    print("rare ways to write 1, 7 and 9: for photos", shares[0], "else", shares[1])
    assert all(ours > 0.96 and ours > other for ours, other in zip(*map(dict.values, shares), strict=True))


@pytest.mark.usefixtures("folder")
def test_brackets_in_the_name_of_a_folder_are_no_pattern() -> None:
    Path("mine").rename("mine [1]")
    for names in (["mine [1]/*.png"], [str(Path("mine [[]1]/*.png"))], ["mine [[]1]/*seven [[]1].png"]):
        assert [Path(name).name for name in load_digits(names)[0]] == ["it's a, seven [1].png"]
    assert load_digits(["mine [1]/[a-f]*"])[0].keys() == {"mine [1]/four.jpg"}


def test_nothing_is_written_if_no_picture_could_be_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["read", "nowhere", "--show"])
    assert end.value.code == 1
    assert capsys.readouterr() == ("", "mnist-lit: error: nowhere: no such file.\n")
    assert [path.name for path in folder.iterdir()] == ["mine"]


@pytest.mark.usefixtures("folder")
def test_invert_applies_to_all_pictures() -> None:
    cli.main(["read", "--no-invert", "mine/four.jpg"])
    assert rows()[0]["digit"] == "4"
    dark, light = (load_digits(["mine/four.jpg"], invert)[0]["mine/four.jpg"] for invert in (False, True))
    assert (dark != light).any()


@pytest.mark.usefixtures("folder")
def test_a_missing_checkpoint_is_reported_before_pictures_are_read() -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["read", "mine", "--ckpt_path", "last"])
    assert str(end.value.code).startswith("mnist-lit: error: last: ")


def test_help_does_not_import_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "mnist_lit", "read", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "several digits" in done.stdout
    assert "Example: mnist-lit read" in done.stdout
    assert "argparse" in done.stderr
    assert "torch" not in done.stderr
