"""A Chromium that draws on the demo's page."""

import contextlib
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.actions.interaction import POINTER_PEN, POINTER_TOUCH
from selenium.webdriver.common.actions.pointer_actions import PointerActions
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By

from helpers.paper import Array, curve
from helpers.processes import wait_until

CHROMIUM, DRIVER = (
    next(filter(None, map(shutil.which, names)), None)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
)


@contextlib.contextmanager
def chromium() -> Iterator[Chrome]:
    """Run a headless Chromium; at the end kill it and its driver, and delete their files."""
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "HOME": folder, "TMPDIR": folder}
        service = ChromeService(DRIVER, env=environment, popen_kw={"start_new_session": True})
        try:
            with Chrome(options, service) as browser:
                yield browser
        finally:
            if hasattr(service, "process"):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(service.process.pid, signal.SIGKILL)
                service.process.wait()


def emulate(page: Chrome, width: int = 1280, height: int = 800, touch: bool = False, dark: bool = False) -> None:
    """Give the page the size, the kind of pointer and the colors of a device."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": touch})
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def open_page(page: Chrome, address: str) -> None:
    """Open the demo's page and wait for its networks."""
    page.get(address)
    wait_until(lambda: page.find_elements(By.CSS_SELECTOR, "#networks :checked"), "the page is ready")


def read_answer(page: Chrome, pattern: str = "It reads") -> str:
    """The answer to the newest drawing, as soon as it matches a pattern, or after a minute."""
    deadline = time.monotonic() + 60
    while True:
        # at once, so that the answer is not replaced in between
        text: str
        text, is_pending = page.execute_script(
            "return [document.getElementById('answer').textContent, !!document.querySelector('.pending')]"
        )
        if (not is_pending and re.search(pattern, text)) or time.monotonic() > deadline:
            return text
        time.sleep(0.05)


def canvas(page: Chrome, name: str) -> Array:
    """The red, green, blue and alpha of a canvas, (H, W, 4)."""
    values, width = page.execute_script(
        "const canvas = document.getElementById(arguments[0]), {width, height} = canvas;"
        "return [[...canvas.getContext('2d').getImageData(0, 0, width, height).data], width]",
        name,
    )
    return np.array(values).reshape(-1, width, 4)


def draw(page: Chrome, strokes: list[str], touch: bool) -> None:
    """Draw strokes, as in helpers.paper, on the page's canvas, with the mouse or a finger."""
    paper = page.find_element(By.ID, "paper")
    side = paper.size["width"]
    pointer = PointerInput(POINTER_TOUCH, "finger") if touch else None
    actions = ActionChains(page, duration=5, devices=[pointer] if pointer else None)
    for stroke in strokes:
        points: Array = np.array([point.split(",") for point in stroke.strip("!").split()], float)
        path = points if stroke.startswith("!") else curve(points)[::3]
        offsets = ((path - 0.5) * [0.45, 0.65] * side).round().astype(int)
        for index, (x, y) in enumerate(offsets.tolist()):
            actions.w3c_actions.pointer_action.move_to(paper, x, y)
            if index == 0:
                actions.w3c_actions.pointer_action.pointer_down()
        actions.w3c_actions.pointer_action.pointer_up()
    actions.perform()


def draw_with_stylus(page: Chrome) -> None:
    """Draw a vertical line with a stylus that is pressed more and more, while a finger touches the page's canvas."""
    paper = page.find_element(By.ID, "paper")
    builder = ActionBuilder(page)
    stylus, finger = (
        PointerActions(builder.add_pointer_input(kind, kind), duration=5) for kind in (POINTER_PEN, POINTER_TOUCH)
    )
    stylus.move_to(paper, 0, -150).pointer_down(pressure=0.1)
    for step in range(15):
        stylus.move_to(paper, 0, 20 * step - 130, pressure=0.2 + step / 20, tilt_x=20)
    finger.pause(0.01).pause(0.01).move_to(paper, 150, 100).pointer_down().move_to(paper, 150, 150).pointer_up()
    stylus.pointer_up()
    builder.perform()
