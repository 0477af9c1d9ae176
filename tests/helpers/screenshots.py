"""Make the README's screenshots, or those that are named, such as `demo`; needs Chromium.

`PYTHONPATH=tests uv run python -m helpers.screenshots`
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from helpers.attacks import serving
from helpers.browser import chromium, draw, emulate, open_page, read_answer
from helpers.paper import HELD_OUT_STROKES, picture
from helpers.tensorboard import Server

REFERENCE = Path(__file__).parents[2] / "lightning_logs" / "reference"


def shrink(path: Path, width: int) -> None:
    """Reduce an image's size and number of colors, for the repository."""
    with Image.open(path) as image:
        image.thumbnail((width, width * 2))
        image.convert("RGB").quantize(128).save(path, optimize=True)


def contact_sheet() -> None:
    """Pictures of paper above what `mnist-lit read` makes of them."""
    seeds = (500, 611, 732, 843, 934, 1025, 1176, 1247, 1338, 1429, 1510, 1681, 1722, 1813, 1904, 1995)
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            picture(seed, True).image.save(Path(folder) / f"{seed}.jpg")
        subprocess.run([sys.executable, "-m", "mnist_lit", "read", folder, "--show"], check=True, cwd=folder)
        with Image.open(Path(folder) / "predictions.png") as sheet:
            both = Image.new("RGB", (sheet.width, sheet.height + 260), "white")
            both.paste(sheet.convert("RGB"), (0, 260))
    for place, seed in enumerate(sorted(seeds, key=str)):
        photo = picture(seed, True).image
        photo.thumbnail((120, 120))
        both.paste(photo, (place % 8 * 130 + 5, place // 8 * 130 + 5))
    both.save(REFERENCE / "predictions.png")
    shrink(REFERENCE / "predictions.png", 900)


def demo_page() -> None:
    """The demo's page with a 7."""
    with chromium() as browser, serving() as server:
        emulate(browser)
        open_page(browser, f"http://127.0.0.1:{server.server_port}")
        draw(browser, HELD_OUT_STROKES[7], touch=False)
        read_answer(browser)
        time.sleep(1)  # the bars move
        browser.save_screenshot(str(REFERENCE / "demo.png"))
    shrink(REFERENCE / "demo.png", 1280)


def tensorboard() -> None:
    """Two tabs of TensorBoard with the reference runs."""
    with chromium() as browser, Server() as server:
        browser.set_window_size(1300, 1100)
        server.wait("custom_scalars/layout", bool)
        for tab, name in (("custom_scalars", "tensorboard"), ("images", "tensorboard_images")):
            browser.get("about:blank")  # else a new tab is not loaded
            browser.get(f"{server.address}/?darkMode=false#{tab}")
            time.sleep(20)
            browser.save_screenshot(str(REFERENCE / f"{name}.png"))
            shrink(REFERENCE / f"{name}.png", 1000)


SCREENSHOTS = {"predictions": contact_sheet, "demo": demo_page, "tensorboard": tensorboard}

if __name__ == "__main__":
    for name in sys.argv[1:] or SCREENSHOTS:
        SCREENSHOTS[name]()
