"""The demo page, in a real Chromium."""

import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import CHROMIUM, DRIVER, chromium_options, draw, served
from helpers.paper import HELD_OUT_STROKES, TUNED_STROKES, picture
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By

needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no Chromium with its chromedriver")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("elsewhere")
    with served(folder) as address:
        yield address
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chrome]:
    browser = Chrome(*chromium_options())
    yield browser
    browser.quit()


@pytest.fixture
def page(chromium: Chrome, address: str) -> Iterator[Chrome]:
    chromium.set_window_size(1100, 900)
    chromium.get(address)
    yield chromium
    assert [entry for entry in chromium.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    asked = re.findall(r'"url":"(\w+:[^"]*)"', " ".join(entry["message"] for entry in chromium.get_log("performance")))
    assert f"{address}/" in asked
    assert {url for url in asked if not url.startswith((address, "data:", "blob:", "about:", "chrome:"))} == set()


def answer(page: Chrome, pattern: str) -> str:
    """The answer, once it is as expected, or as it is after three seconds."""
    for _ in range(30):
        text = page.find_element(By.ID, "answer").text
        if re.search(pattern, text):
            break
        time.sleep(0.1)
    return text


@needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize(
    ("strokes", "touch"), [(HELD_OUT_STROKES, False), (TUNED_STROKES, True)], ids=["mouse", "touch"]
)
def test_the_ten_digits_are_read_as_they_are_drawn(
    page: Chrome, strokes: dict[int, list[str]], touch: bool, tmp_path: Path
) -> None:
    right = []
    for digit in range(10):
        draw(page, strokes[digit], touch)
        right.append(f"reads {digit}," in answer(page, f"reads {digit},"))
        rows = page.find_elements(By.CSS_SELECTOR, "#digits tr")
        assert sum(float(row.text.split()[1]) for row in rows) == pytest.approx(100, abs=0.6)
        if digit == 7:
            page.save_screenshot(str(tmp_path / "demo.png"))
        page.find_element(By.ID, "clear").click()
        assert answer(page, "Nothing drawn") == "Nothing drawn yet."
    assert sum(right) >= 9, right
    assert (tmp_path / "demo.png").stat().st_size > 10_000


@needs_chromium
@pytest.mark.slow
def test_a_photo_is_read_and_a_bad_one_told(page: Chrome, tmp_path: Path) -> None:
    picture(64, True).image.save(tmp_path / "four.jpg")
    (tmp_path / "bad.png").write_text("7")
    chosen = page.find_element(By.ID, "photo")
    chosen.send_keys(str(tmp_path / "four.jpg"))
    assert "It reads 4, " in answer(page, "It reads")
    seen: list[int] = page.execute_script("return [...seen.getImageData(0, 0, 28, 28).data]")
    assert max(seen[::4]) > 200
    chosen.send_keys(str(tmp_path / "bad.png"))
    assert answer(page, "No answer") == "No answer: not a picture in a usual format, such as JPEG or PNG."


@needs_chromium
@pytest.mark.slow
def test_the_page_is_for_keyboards_and_phones(page: Chrome) -> None:
    keys = page.switch_to.active_element
    reached = []
    for _ in range(3):
        keys.send_keys(Keys.TAB)
        keys = page.switch_to.active_element
        reached.append(keys.get_attribute("id"))
    assert reached == ["paper", "clear", "photo"]
    paper = page.find_element(By.ID, "paper")
    paper.send_keys(*[Keys.ARROW_UP] * 9, " ", *[Keys.ARROW_DOWN] * 18, " ")
    assert "It reads 1, " in answer(page, "It reads 1")
    for control in page.find_elements(By.CSS_SELECTOR, "canvas, button, input"):
        assert control.accessible_name
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    )
    sizes: list[Any] = page.execute_script(
        "return [document.body.scrollWidth, innerWidth, parseFloat(getComputedStyle(document.body).fontSize)]"
    )
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert sizes[0] <= sizes[1] == 360
    assert sizes[2] >= 16


def test_other_names_and_other_paths_are_refused(address: str) -> None:
    for path, headers, data, code in (
        ("", {"Host": "elsewhere.example:80"}, None, 403),
        ("/../pyproject.toml", {}, None, 404),
        ("/photo", {"Origin": "http://elsewhere.example"}, b"7", 403),
        ("/photo", {"Origin": "null"}, b"7", 403),
        ("/photo", {"Content-Length": "abc"}, b"7", 400),
    ):
        request = urllib.request.Request(address + path, data, headers)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=10)
        refused.value.close()
        assert refused.value.code == code


def test_ctrl_c_ends_it_with_130_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mnist_lit", "demo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stdout
        assert "Ctrl-C ends this" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 130


@needs_chromium
@pytest.mark.slow
def test_clear_and_strokes_take_photos_away(page: Chrome, tmp_path: Path) -> None:
    picture(64, True).image.save(tmp_path / "four.jpg")
    chosen = page.find_element(By.ID, "photo")
    for _ in range(2):  # the same photo again
        chosen.send_keys(str(tmp_path / "four.jpg"))
        assert "It reads 4, " in answer(page, "It reads 4")
        # an image of what was drawn that is ready only after Clear
        page.execute_script("drawn(); paper.toBlob = take => setTimeout(() => take(new Blob(['7'])), 300)")
        time.sleep(0.2)
        page.find_element(By.ID, "clear").click()
        time.sleep(1)
        assert answer(page, "Nothing drawn") == "Nothing drawn yet."
        assert page.execute_script("return $('photo').value") == ""
        page.execute_script("delete paper.toBlob")
    chosen.send_keys(str(tmp_path / "four.jpg"))
    assert "It reads 4, " in answer(page, "It reads 4")
    draw(page, HELD_OUT_STROKES[7], False)
    assert "It reads 7, " in answer(page, "It reads 7")
