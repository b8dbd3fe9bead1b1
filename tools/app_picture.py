"""Takes the picture of the app in docs/predict.md: `python tools/app_picture.py ADDRESS`, with Chromium on the path.

First `make report`, then `pneumolib app demo/03_baseline_cnn`, which prints the ADDRESS. Writes `docs/app.png`: two drawn
pneumonias of the demo's run.
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

FILE = Path(__file__).resolve().parents[1] / "docs/app.png"


def main(address: str) -> None:
    """Draw two images on the page and save what is seen, in 256 colours."""
    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 1040, "height": 1540}, reduced_motion="reduce")
        page.goto(address)
        for number in (1, 2):
            page.get_by_role("button", name="Draw: bacterial pneumonia").click(timeout=60_000)
            expect(page.get_by_role("img", name=f"pneumonia {number} with its Grad-CAM map")).to_be_visible(
                timeout=60_000
            )
        page.mouse.move(0, 0)
        shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
        browser.close()
    shot.quantize(256, dither=Image.Dither.NONE).save(FILE, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
