"""The demo page, and a real Chromium that draws on it."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from selenium.webdriver import ActionChains, Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.actions.interaction import POINTER_TOUCH
from selenium.webdriver.common.actions.pointer_input import PointerInput
from selenium.webdriver.common.by import By

from helpers.paper import Array, curve

CHROMIUM, DRIVER = (
    next(filter(None, map(shutil.which, names)), None)
    for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Where the demo is served, started from a folder and without a checkpoint named."""
    command = [sys.executable, "-m", "mnist_lit", "demo", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())
        assert found
        yield found[0]
        process.terminate()


def chromium_options() -> tuple[ChromeOptions, ChromeService]:
    options = ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1100,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return options, ChromeService(DRIVER)


def draw(page: Chrome, strokes: list[str], touch: bool) -> None:
    paper = page.find_element(By.ID, "paper")
    side = paper.size["width"]
    pointer = PointerInput(POINTER_TOUCH, "finger") if touch else None
    hand = ActionChains(page, duration=5, devices=[pointer] if pointer else None)
    for stroke in strokes:
        points: Array = np.array([point.split(",") for point in stroke.strip("!").split()], float)
        path = points if stroke.startswith("!") else curve(points)[::3]
        offsets = ((path - 0.5) * [0.45, 0.65] * side).round().astype(int)
        for index, (x, y) in enumerate(offsets.tolist()):
            hand.w3c_actions.pointer_action.move_to(paper, x, y)
            if index == 0:
                hand.w3c_actions.pointer_action.pointer_down()
        hand.w3c_actions.pointer_action.pointer_up()
    hand.perform()
