"""The README's pictures of things to look at: `uv run python tests/screenshots.py`, where there is a Chromium."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from selenium.webdriver import Chrome

from helpers.browser import chromium_options, draw, served
from helpers.paper import HELD_OUT_STROKES, picture
from helpers.tensorboard import Server

REFERENCE = Path(__file__).parents[2] / "lightning_logs" / "reference"


def small(path: Path, width: int) -> None:
    """Fewer pixels and colours, for a repository."""
    with Image.open(path) as image:
        image.thumbnail((width, width * 2))
        image.convert("RGB").quantize(48).save(path, optimize=True)


def contact_sheet() -> None:
    with tempfile.TemporaryDirectory() as folder:
        seeds = (500, 611, 732, 843, 934, 1025, 1176, 1247, 1338, 1429, 1510, 1681, 1722, 1813, 1904, 1995)
        for seed in seeds:
            picture(seed, True).image.save(Path(folder) / f"{seed}.jpg")
        command = [sys.executable, "-m", "mnist_lit", "predict", "--ckpt_path"]
        command += [str(REFERENCE / "ds_cnn_v3/checkpoints/last.ckpt"), "--data.images", folder, "--data.show"]
        subprocess.run(command, check=True, cwd=folder)
        with Image.open(Path(folder) / "predictions.png") as read:
            both = Image.new("RGB", (read.width, read.height + 260), "white")
            both.paste(read.convert("RGB"), (0, 260))
        for place, seed in enumerate(sorted(seeds, key=str)):
            given = picture(seed, True).image
            given.thumbnail((120, 120))
            both.paste(given, (place % 8 * 130 + 5, place // 8 * 130 + 5))
        both.save(REFERENCE / "predictions.png")
    small(REFERENCE / "predictions.png", 900)


def main() -> None:
    contact_sheet()
    browser = Chrome(*chromium_options())
    browser.set_window_size(1000, 800)
    with served(Path()) as address:
        browser.get(address)
        draw(browser, HELD_OUT_STROKES[7], touch=False)
        time.sleep(1)
        browser.save_screenshot(str(REFERENCE / "demo.png"))
    small(REFERENCE / "demo.png", 800)
    with Server() as server:
        browser.set_window_size(1300, 850)
        browser.get(f"{server.address}/?darkMode=false#custom_scalars")
        server.wait("custom_scalars/layout", bool)
        time.sleep(20)
        browser.save_screenshot(str(REFERENCE / "tensorboard.png"))
    small(REFERENCE / "tensorboard.png", 1000)
    browser.quit()


if __name__ == "__main__":
    main()
