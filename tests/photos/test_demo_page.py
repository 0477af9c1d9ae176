"""The demo's page in a real Chromium: drawing, answers, keyboard, phone and accessibility."""

import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.attacks import serving
from helpers.browser import CHROMIUM, DRIVER, canvas, chromium, draw, draw_with_stylus, emulate, open_page, read_answer
from helpers.paper import HELD_OUT_STROKES, TUNED_STROKES, Array, picture
from helpers.processes import FULL, wait_until
from PIL import Image
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By

from mnist_lit.photos import demo
from mnist_lit.photos.mnist_form import drawing_to_digit
from mnist_lit.photos.pictures import UnreadableError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and chromedriver"),
]

ANSWER_S = 0.5 if FULL else 60
"""Seconds from the last movement of a stroke to its answer; the real limit needs an idle machine."""

AXE = Path(os.environ.get("AXE_CORE", ""), "axe.min.js")
DESKTOP, PHONE = (1280, 800), (390, 844)
EMPTY = "Draw a digit from 0 to 9."


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a server in this process."""
    with serving() as server:
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Chrome, address: str) -> Iterator[Chrome]:
    """The page, which must log no error and request nothing from elsewhere."""
    emulate(browser)
    open_page(browser, address)
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    urls = re.findall(r'"url":"(\w+:[^"]*)"', " ".join(entry["message"] for entry in browser.get_log("performance")))
    assert f"{address}/" in urls
    assert {url for url in urls if not url.startswith((address, "data:", "blob:", "about:", "chrome:"))} == set()


def click(page: Chrome, name: str) -> None:
    page.find_element(By.ID, name).click()


@pytest.mark.parametrize(
    ("strokes", "touch"), [(HELD_OUT_STROKES, False), (TUNED_STROKES, True)], ids=["mouse", "touch"]
)
def test_ten_drawn_digits_are_read_promptly(
    page: Chrome, strokes: dict[int, list[str]], touch: bool, report: Callable[[str], None]
) -> None:
    page.execute_script("""
        addEventListener("pointermove", event => { if (event.buttons) window.moved = performance.now(); }, true);
        new MutationObserver(() => {
          if (!document.querySelector(".pending")) window.answered = performance.now();
        }).observe(document.getElementById("result"), {attributes: true});""")
    is_right, seconds = [], []
    for digit in range(10):
        draw(page, strokes[digit], touch)
        # the first answer that is not pending: a wrong one must not stand there meanwhile
        is_right.append(f"reads {digit}," in read_answer(page, ""))
        seconds.append(page.execute_script("return answered - moved") / 1000)
        percents = [float(each.text) for each in page.find_elements(By.CSS_SELECTOR, "#bars .percent")]
        assert sum(percents) == pytest.approx(100, abs=5)
        click(page, "clear")
        assert read_answer(page, EMPTY) == EMPTY
    report(f"answers {1000 * np.median(seconds):.0f} ms after the last movement, at most {1000 * max(seconds):.0f} ms")
    assert sum(is_right) >= 9, is_right
    assert 0 < max(seconds) < ANSWER_S


def test_the_pressure_of_a_stylus_and_a_finger_beside_it_change_nothing(page: Chrome) -> None:
    draw_with_stylus(page)
    assert "It reads 1, " in read_answer(page)
    widths = (canvas(page, "paper")[..., 3] > 128).sum(axis=1)
    assert widths.max() <= 40


def test_the_page_shows_what_each_network_gets_and_reads(page: Chrome) -> None:
    draw(page, HELD_OUT_STROKES[7], False)
    assert "It reads 7, " in read_answer(page)
    assert canvas(page, "pixels").shape == (28, 28, 4)
    assert canvas(page, "input").shape == (18, 18, 4)
    votes = [option.text for option in page.find_elements(By.CSS_SELECTOR, "#networks .vote")]
    assert [vote[:2] for vote in votes] == ["7,"] * 3
    inputs = []
    for option, vote in zip(page.find_elements(By.CSS_SELECTOR, "#networks input"), votes, strict=True):
        option.click()
        assert vote.removeprefix("7, ") in read_answer(page)
        inputs.append(page.find_element(By.ID, "input-of").text)
    assert inputs == ["DS_CNN_V1", "DS_CNN_V2", "DS_CNN_V3"]


def test_a_photo_is_read_and_an_unreadable_file_reported(page: Chrome, tmp_path: Path) -> None:
    picture(64, True).image.save(tmp_path / "four.jpg")
    (tmp_path / "bad.png").write_text("7")
    photo = page.find_element(By.ID, "photo")
    for _ in range(2):  # the same photo again
        photo.send_keys(str(tmp_path / "four.jpg"))
        assert "It reads 4, " in read_answer(page)
        wait_until(lambda: canvas(page, "paper")[280, 280, 3] == 255, "the photo is drawn")
        click(page, "clear")
        assert read_answer(page, EMPTY) == EMPTY
    photo.send_keys(str(tmp_path / "bad.png"))
    assert read_answer(page, "No answer") == "No answer: not a picture in a common format, such as JPEG or PNG."
    draw(page, HELD_OUT_STROKES[7], False)
    assert "It reads 7, " in read_answer(page)
    assert canvas(page, "pixels")[..., 0].max() > 200


def test_an_error_stands_in_place_of_the_answer(page: Chrome, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Image.Image) -> Array:
        raise UnreadableError("several digits; draw one")

    monkeypatch.setattr(demo, "drawing_to_digit", refuse)
    draw(page, HELD_OUT_STROKES[7], False)
    assert read_answer(page, "No answer") == "No answer: several digits; draw one."
    assert "error" in (page.find_element(By.ID, "result").get_attribute("class") or "")
    assert page.find_element(By.ID, "bars").text.split() == list("0123456789")
    assert canvas(page, "pixels").max() == 0


def test_an_answer_that_comes_late_is_pending_and_ignored_after_clear(
    page: Chrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, answered = threading.Event(), threading.Event()
    go_on.set()

    def slow(image: Image.Image) -> Array:
        go_on.wait(60)
        digit = drawing_to_digit(image)
        answered.set()
        return digit

    monkeypatch.setattr(demo, "drawing_to_digit", slow)
    draw(page, TUNED_STROKES[1], False)
    assert "It reads 1, " in read_answer(page)
    go_on.clear()
    answered.clear()
    draw(page, ["!.1,.04 .88,.04"], False)
    assert page.find_elements(By.CSS_SELECTOR, ".pending")
    click(page, "clear")
    assert read_answer(page, "") == EMPTY
    go_on.set()
    assert answered.wait(60)
    time.sleep(1)  # the answer travels
    assert read_answer(page, "") == EMPTY


def test_undo_takes_back_a_stroke_clear_and_a_photo(page: Chrome, tmp_path: Path) -> None:
    picture(64, True).image.save(tmp_path / "four.jpg")
    draw(page, TUNED_STROKES[1], False)
    assert "It reads 1, " in read_answer(page)
    one = canvas(page, "paper")
    draw(page, ["!.1,.04 .88,.04"], False)
    page.find_element(By.ID, "photo").send_keys(str(tmp_path / "four.jpg"))
    assert "It reads 4, " in read_answer(page, "It reads 4, ")
    click(page, "undo")
    click(page, "undo")
    assert "It reads 1, " in read_answer(page, "It reads 1, ")
    assert np.array_equal(canvas(page, "paper"), one)
    click(page, "clear")
    assert read_answer(page, EMPTY) == EMPTY
    page.find_element(By.ID, "paper").send_keys(Keys.CONTROL, "z")
    assert "It reads 1, " in read_answer(page, "It reads 1, ")
    click(page, "undo")
    assert read_answer(page, EMPTY) == EMPTY
    assert page.find_element(By.ID, "undo").get_attribute("aria-disabled") == "true"


def test_the_keyboard_draws_with_a_pen_that_is_seen_and_that_clear_lifts(page: Chrome) -> None:
    order = []
    for _ in range(5):
        ActionChains(page).send_keys(Keys.TAB).perform()
        order.append(page.switch_to.active_element.get_attribute("id") or "network")
    assert order == ["undo", "clear", "photo", "paper", "network"]
    paper, cursor = page.find_element(By.ID, "paper"), page.find_element(By.ID, "cursor")
    paper.send_keys(*[Keys.ARROW_UP] * 9)
    assert cursor.is_displayed()
    assert not canvas(page, "paper").any()
    paper.send_keys(" ", *[Keys.ARROW_DOWN] * 18)
    assert "It reads 1, " in read_answer(page)
    assert cursor.get_attribute("class") == "down"
    wait_until(lambda: "It reads 1" in page.find_element(By.ID, "status").text, "the status names the digit")
    page.execute_script("document.getElementById('clear').onclick()")  # a click would move the focus
    assert cursor.get_attribute("class") == ""
    paper.send_keys(Keys.ARROW_DOWN)
    assert not canvas(page, "paper").any()
    paper.send_keys(" ", Keys.TAB)
    assert not cursor.is_displayed()
    assert cursor.get_attribute("class") == ""
    controls = page.find_elements(By.CSS_SELECTOR, "canvas, button, input")
    assert all(control.accessible_name for control in controls)


@pytest.mark.parametrize("size", [DESKTOP, PHONE, (390, 664), (768, 1024), (844, 390)])
def test_paper_answer_and_bars_are_seen_without_scrolling(page: Chrome, size: tuple[int, int]) -> None:
    emulate(page, *size, touch=size != DESKTOP)
    draw(page, HELD_OUT_STROKES[7], size != DESKTOP)
    assert "It reads 7, " in read_answer(page)
    for name in ("paper", "answer", "guess", "bars", *["networks"] * (size in (DESKTOP, PHONE))):
        rect: dict[str, Any] = page.find_element(By.ID, name).rect
        assert rect["y"] >= 0, name
        assert rect["y"] + rect["height"] <= size[1], name
    assert len([bar for bar in page.find_elements(By.CSS_SELECTOR, "#bars li") if bar.is_displayed()]) == 10
    assert page.find_element(By.ID, "how").is_displayed() == (size == DESKTOP)
    width, font = page.execute_script(
        "return [document.documentElement.scrollWidth, parseFloat(getComputedStyle(document.body).fontSize)]"
    )
    assert width <= size[0]
    assert font >= 16


@pytest.mark.skipif(not AXE.is_file(), reason="AXE_CORE does not name the folder of npm's package axe-core")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_no_accessibility_violation(page: Chrome, size: tuple[int, int], dark: bool, tmp_path: Path) -> None:
    emulate(page, *size, touch=size == PHONE, dark=dark)
    (tmp_path / "bad.png").write_text("7")
    page.execute_script(AXE.read_text())

    def violations() -> list[str]:
        moving = "return document.getAnimations().length"  # colors and bars
        wait_until(lambda: page.execute_script(moving) == 0, "nothing moves")
        found: list[str] = page.execute_async_script(
            "axe.run().then(({violations}) => arguments[0](violations.map(each => JSON.stringify(each))))"
        )
        return found

    assert violations() == []
    draw(page, HELD_OUT_STROKES[7], size == PHONE)
    assert "It reads 7, " in read_answer(page)
    assert violations() == []
    page.find_element(By.ID, "photo").send_keys(str(tmp_path / "bad.png"))
    assert "No answer" in read_answer(page, "No answer")
    assert violations() == []
