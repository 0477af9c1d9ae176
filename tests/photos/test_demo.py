"""The demo's server, and its page in a real Chromium."""

import io
import json
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.attacks import serving
from helpers.browser import CHROMIUM, DRIVER, chromium, demo_server, draw
from helpers.paper import HELD_OUT_STROKES, TUNED_STROKES, picture, seven
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By

from mnist_lit import UserError
from mnist_lit.command_parser import REFERENCE
from mnist_lit.files import project_path
from mnist_lit.photos.demo import start_server
from mnist_lit.run.restore import load_classifier

needs_chromium = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and chromedriver")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a server in this process."""
    with serving() as server:
        yield f"http://127.0.0.1:{server.server_port}"


def post(url: str, body: bytes) -> dict[str, Any]:
    with urllib.request.urlopen(url, body, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def test_the_page_may_request_nothing_from_other_servers(address: str) -> None:
    with urllib.request.urlopen(address, timeout=10) as response:
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert b"Draw a digit" in response.read()


@pytest.mark.parametrize("path", ["drawing", "photo"])
def test_a_posted_picture_is_answered_with_probabilities_and_pixels(address: str, path: str) -> None:
    file = io.BytesIO()
    seven().save(file, "PNG")
    answer = post(f"{address}/{path}", file.getvalue())
    assert answer["probabilities"].index(max(answer["probabilities"])) == 7
    assert sum(answer["probabilities"]) == pytest.approx(1)
    assert len(answer["pixels"]) == 784
    assert "not a picture" in post(f"{address}/{path}", b"7")["error"]


@pytest.mark.parametrize(
    ("path", "headers", "body", "code"),
    [
        ("", {"Host": "elsewhere.example:80"}, None, 403),
        ("/../pyproject.toml", {}, None, 404),
        ("/photo", {"Origin": "http://elsewhere.example"}, b"7", 403),
        ("/photo", {"Origin": "null"}, b"7", 403),
        ("/photo", {"Content-Length": "0"}, b"7", 400),
        ("/photo", {"Content-Length": "abc"}, b"7", 400),
        ("/photo", {"Content-Length": "64000001"}, b"7", 413),
    ],
)
def test_other_hosts_origins_and_paths_are_refused(
    address: str, path: str, headers: dict[str, str], body: bytes | None, code: int
) -> None:
    request = urllib.request.Request(address + path, body, headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    refused.value.close()
    assert refused.value.code == code


def test_a_port_in_use_or_out_of_range_is_reported(address: str) -> None:
    model, _ = load_classifier(project_path(REFERENCE))
    for port in (int(address.rpartition(":")[2]), 70_000):
        with pytest.raises(UserError, match=f"--port {port} cannot be used"):
            start_server(model, port)


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_no_traceback(tmp_path: Path) -> None:
    with demo_server(tmp_path) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60) == ("", "")
        assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Chrome, address: str) -> Iterator[Chrome]:
    """The page, which must log no error and request nothing from elsewhere."""
    browser.set_window_size(1100, 900)
    browser.get(address)
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    urls = re.findall(r'"url":"(\w+:[^"]*)"', " ".join(entry["message"] for entry in browser.get_log("performance")))
    assert f"{address}/" in urls
    assert {url for url in urls if not url.startswith((address, "data:", "blob:", "about:", "chrome:"))} == set()


def answer(page: Chrome, pattern: str) -> str:
    """The page's answer, as soon as it matches the pattern, or after a minute."""
    for _ in range(600):
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
def test_ten_drawn_digits_are_read(page: Chrome, strokes: dict[int, list[str]], touch: bool) -> None:
    is_right = []
    for digit in range(10):
        draw(page, strokes[digit], touch)
        is_right.append(f"reads {digit}," in answer(page, f"reads {digit},"))
        rows = page.find_elements(By.CSS_SELECTOR, "#digits tr")
        assert sum(float(row.text.split()[1]) for row in rows) == pytest.approx(100, abs=0.6)
        page.find_element(By.ID, "clear").click()
        assert answer(page, "Nothing drawn") == "Nothing drawn yet."
    assert sum(is_right) >= 9, is_right


@needs_chromium
@pytest.mark.slow
def test_a_photo_is_read_and_an_unreadable_file_reported(page: Chrome, tmp_path: Path) -> None:
    picture(64, True).image.save(tmp_path / "four.jpg")
    (tmp_path / "bad.png").write_text("7")
    file_input = page.find_element(By.ID, "photo")
    file_input.send_keys(str(tmp_path / "four.jpg"))
    assert "It reads 4, " in answer(page, "It reads")
    pixels: list[int] = page.execute_script("return [...seen.getImageData(0, 0, 28, 28).data]")
    assert max(pixels[::4]) > 200
    file_input.send_keys(str(tmp_path / "bad.png"))
    assert answer(page, "No answer") == "No answer: not a picture in a common format, such as JPEG or PNG."


@needs_chromium
@pytest.mark.slow
def test_clear_and_new_strokes_remove_a_photo(page: Chrome, tmp_path: Path) -> None:
    picture(64, True).image.save(tmp_path / "four.jpg")
    file_input = page.find_element(By.ID, "photo")
    for _ in range(2):  # the same photo again
        file_input.send_keys(str(tmp_path / "four.jpg"))
        assert "It reads 4, " in answer(page, "It reads 4")
        # a drawing whose image is ready only after Clear
        page.execute_script("sendDrawing(); paper.toBlob = take => setTimeout(() => take(new Blob(['7'])), 300)")
        time.sleep(0.2)
        page.find_element(By.ID, "clear").click()
        time.sleep(1)
        assert answer(page, "Nothing drawn") == "Nothing drawn yet."
        assert page.execute_script("return $('photo').value") == ""
        page.execute_script("delete paper.toBlob")
    file_input.send_keys(str(tmp_path / "four.jpg"))
    assert "It reads 4, " in answer(page, "It reads 4")
    draw(page, HELD_OUT_STROKES[7], False)
    assert "It reads 7, " in answer(page, "It reads 7")


@needs_chromium
@pytest.mark.slow
def test_the_page_works_with_a_keyboard_and_on_a_phone(page: Chrome) -> None:
    focused = page.switch_to.active_element
    order = []
    for _ in range(3):
        focused.send_keys(Keys.TAB)
        focused = page.switch_to.active_element
        order.append(focused.get_attribute("id"))
    assert order == ["paper", "clear", "photo"]
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
