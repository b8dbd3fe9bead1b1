"""The page of a trained model in a real browser, headless, with real uploads. Needs Chromium, as `test_browser`.

The picture in the README is made here, of the demo's own run after `make report`:

    PNEUMOLIB_SCREENSHOTS=docs .venv/bin/python -m pytest -n 0 tests/test_app.py -k readme
"""

import contextlib
import csv
import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image

from conftest import REPO
from pneumolib.data.drawing import draw_radiograph
from pneumolib.serve.trained import RESEARCH_ONLY
from pneumolib.serve.uploads import MOST_BYTES
from test_browser import CONTRASTS, chromium, expect, playwright
from test_decode import write_dicom
from test_uploads import claiming, picture

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install .[app]")

PATIENT = "Doe^Jane"  # in the names of its files, too
PICTURE = "How much of the map is laid over the image"


class Server:
    """A page on a free port of this machine; `said` is all that it has written to its log."""

    def __init__(self, root: Path, *command: str, **more: str):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        self.address = f"http://localhost:{port}"
        own = {"PNEUMOLIB_ROOT": str(root), "PYTHONPATH": f"{REPO}:{REPO / 'tests'}", **more}
        self.process = subprocess.Popen(
            [sys.executable, *command, str(port)], cwd=root, env=os.environ | own, text=True, bufsize=1,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.lines = []
        self.reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")))
        self.reader.start()

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def wait(self) -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until and self.process.poll() is None:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/_stcore/health", timeout=5):
                return
            time.sleep(0.1)
        raise AssertionError(f"no page came: {self.said}")

    def stop(self) -> None:
        """At once: a tab that is still open would be waited for."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        self.process.stdout.close()


def everything(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    chromium()  # nothing is started where nothing can be looked at
    root, home = tmp_path_factory.mktemp("app"), tmp_path_factory.mktemp("home")
    apart = {"HOME": str(home), "TMPDIR": str(home), "MPLCONFIGDIR": mpl.get_cachedir()}  # its list of fonts
    started = Server(root, str(REPO / "tests/app_child.py"), **apart)
    try:
        started.wait()
        before = everything(root, home)
        yield started
        assert everything(root, home) == before
    finally:
        started.stop()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tool:
        started = tool.chromium.launch(executable_path=chromium())
        expect.set_options(timeout=20_000)  # another test file may have the other core
        yield started
        expect.set_options(timeout=5_000)
        started.close()


class Visitor:
    """A person with a browser of their own: what they do on the page, and what went wrong there."""

    def __init__(self, browser, server, **options):
        self.server, self.faults = server, []
        self.page = browser.new_context(reduced_motion="reduce", **options).new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("request", self.note_request)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("console", lambda said: said.type == "error" and self.faults.append(said.text))
        self.page.goto(server.address)
        expect(self.page.get_by_role("button", name="Draw: normal")).to_be_visible(timeout=60_000)

    def note_request(self, request):
        local = self.server.address.removeprefix("http")
        if not request.url.startswith((f"http{local}", f"ws{local}", "data:", f"blob:{self.server.address}")):
            self.faults.append(f"request: {request.url}")

    def upload(self, *files) -> None:
        """Paths, or pairs of name and bytes."""
        payload = [{"name": f[0], "mimeType": "", "buffer": f[1]} if isinstance(f, tuple) else f for f in files]
        self.page.locator("input[type=file]").set_input_files(payload)

    def rows(self, number: int) -> list[str]:
        """The table of images that were read, once it has so many: name, class and probability, as a screen reader has them."""
        expect(self.page.get_by_role("heading", name=f"{number} images, threshold")).to_be_visible()
        rows = self.page.locator("canvas tbody tr")
        expect(rows).to_have_count(number)
        cells = [row.locator("td").all_text_contents() for row in rows.all()]
        return [" | ".join(row[:3]) for row in cells]

    def refused(self) -> list[str]:
        """What is said of files that were not read."""
        return self.page.locator(".pn-name").filter(has_text="not read").all_inner_texts()

    def choose(self, box: str, option: str) -> None:
        """By keyboard; the list closes when the page moves, as it does when a field is first reached."""
        self.rest()
        field, line = (
            self.page.get_by_role("combobox", name=box),
            self.page.get_by_role("option", name=option, exact=True),
        )
        field.focus()
        for _ in range(5):
            field.press("ArrowDown")
            with contextlib.suppress(playwright.TimeoutError):
                line.click(timeout=2000)
                break
        expect(field).to_have_value(option)

    def rest(self) -> None:
        """Wait until the script has run to its end."""
        expect(self.page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")

    def remove_all(self) -> None:
        self.page.get_by_role("button", name="Remove all images").click()
        expect(self.page.locator(".pn-name, .pn-figure")).to_have_count(0)


@pytest.fixture(scope="module")
def visitor(browser, server):
    return Visitor(browser, server, viewport={"width": 1280, "height": 900})


@pytest.fixture
def visit(visitor):
    """The first visitor; by the end nothing was asked of another machine, and nothing has failed in the browser."""
    visitor.faults.clear()
    yield visitor
    if visitor.page.locator(".pn-name, .pn-figure").count():
        visitor.remove_all()
    assert visitor.faults == []


def radiograph(form: str = "PNG", number: int = 1) -> bytes:
    file = io.BytesIO()
    Image.fromarray(draw_radiograph("virus", number)).save(file, form)
    return file.getvalue()


def test_what_is_an_image_is_called_and_what_is_not_says_why(visit, tmp_path):
    dicom = write_dicom(tmp_path / "x.dcm", draw_radiograph("virus"), bits=8).read_bytes()
    cut = write_dicom(tmp_path / "y.dcm", draw_radiograph("virus"), bits=8).read_bytes()[:9000]
    large = tmp_path / "large.png"
    with large.open("wb") as file:  # holes: nothing is written
        file.truncate(MOST_BYTES + 2**20)
    visit.upload(
        ("child.jpeg", radiograph("JPEG")), ("broken.png", radiograph()[:3000]), (f"{PATIENT}.dcm", dicom), ("empty.png", b""),
        ("words.txt", b"no image"), ("bomb.png", claiming(9000, 9000)), (f"{PATIENT} 2.dcm", cut), ("last.png", radiograph()),
    )  # fmt: skip
    rows, refused = visit.rows(3), visit.refused()
    for row, name in zip(rows, ("child.jpeg", "DICOM 1", "last.png"), strict=True):
        assert re.fullmatch(rf"{name} \| (pneumonia|normal) \| 0\.\d+", row)
    assert refused[0].startswith("broken.png: not read: does not decode")
    assert refused[1:4] == [
        "File 4 (.png): not read: empty file (0 bytes)",
        "File 5 (.txt): not read: neither JPEG, PNG nor DICOM, by its first bytes",
        "bomb.png: not read: too many pixels; allowed are 30 million pixels",
    ]
    assert refused[4].startswith("DICOM 2: not read: DICOM does not decode")
    visit.choose("Image", "DICOM 1")
    expect(visit.page.get_by_role("img", name="DICOM 1 with its Grad-CAM map")).to_be_visible()
    with visit.page.expect_download() as taken:
        visit.page.get_by_role("button", name="Download the table").click()
    table = Path(taken.value.path()).read_text(encoding="utf-8")
    assert [row["image"] for row in csv.DictReader(io.StringIO(table))][2] == "DICOM 1"
    shown = re.sub(r"base64,[^\"]+|0\.\d+", "", visit.page.content() + table)  # any digits can be in these
    for secret in ("Doe", "Jane", "Secret", "4711"):  # names of files, of patients, and numbers
        assert secret not in shown
    visit.upload(large)
    expect(visit.page.get_by_text("File 9 (.png): not read: 65 MB; allowed are 64 MB for one file")).to_be_visible()


def test_a_file_that_is_too_large_to_be_sent_is_refused_without_its_name(visit, tmp_path):
    huge = tmp_path / f"{PATIENT}.dcm"
    with huge.open("wb") as file:
        file.truncate(201 * 2**20)
    visit.upload(huge)
    place = visit.page.get_by_test_id("stFileUploaderDropzone")
    expect(place.get_by_test_id("stFileChip")).to_have_attribute("aria-invalid", "true")
    said = place.evaluate("element => getComputedStyle(element, '::after').content")
    assert said == '"A file was refused: it is larger than 200 MB."'
    expect(place.get_by_text("Doe")).to_be_hidden()
    visit.upload(("next.png", picture()))
    expect(visit.page.get_by_role("img", name="next.png with its Grad-CAM map")).to_be_visible()
    expect(place.get_by_test_id("stFileChip")).to_have_count(0)
    assert "Doe" not in visit.page.content()


def test_two_visitors_at_once_see_their_own_files_and_the_same_classes(visit, browser, server):
    other = Visitor(browser, server)
    for one, name, files in ((visit, "mine", 12), (other, "theirs", 3)):
        one.upload(*((f"{name} {number}.png", radiograph(number=number)) for number in range(files)))
    found = visit.rows(12), other.rows(3)
    assert [row.split(" | ")[0] for row in found[0]] == [f"mine {number}.png" for number in range(12)]
    assert "theirs" not in visit.page.content()
    assert "mine" not in other.page.content()
    assert [row.replace("mine", "theirs") for row in found[0][:3]] == found[1]
    assert other.faults == []
    other.page.context.close()


def test_a_run_is_chosen_and_said_to_be_drawn(visit):
    page = visit.page
    drawn = page.get_by_text("trained on drawn images")
    expect(drawn).to_be_visible()
    page.get_by_role("button", name="Draw: normal").click()
    figure = page.locator(".pn-figure figcaption").filter(has_not_text="Grad-CAM")
    expect(figure).to_have_text(["As read; so the network sees it", "Histogram equalisation", "CLAHE"])
    expect(page.get_by_text("the threshold of 30.0%")).to_be_visible()
    visit.choose("Trained run", "tiny/03_baseline_cnn-clahe")
    expect(figure).to_have_text(["As read", "Histogram equalisation", "CLAHE; so the network sees it"])
    expect(page.get_by_text("the threshold of 90.0%")).to_be_visible()
    expect(drawn).to_be_hidden()
    visit.choose("Trained run", "tiny/03_baseline_cnn")
    expect(drawn).to_be_visible()


def test_the_keyboard_is_enough(visit):
    page = visit.page
    visit.rest()
    page.bring_to_front()
    page.locator("main").focus()

    def focused() -> str:
        name = page.evaluate("(e => e.getAttribute('aria-label') || e.innerText)(document.activeElement)")
        return name.strip().split("\n")[-1]

    def tab_to(name: str) -> list[str]:
        passed = []
        for _ in range(12):
            page.keyboard.press("Tab")
            passed.append(focused())
            if passed[-1] == name:
                return passed
        raise AssertionError(f"{name} cannot be reached: {passed}")

    tab_to("Upload")
    with page.expect_file_chooser():
        page.keyboard.press("Enter")
    assert len(tab_to("Draw: bacterial pneumonia")) == 2  # the order on the page
    page.keyboard.press("Enter")
    shown = page.get_by_role("img", name="with its Grad-CAM map")
    expect(shown).to_be_visible()
    slider = page.get_by_role("slider", name=PICTURE)
    if slider.is_enabled():  # an untrained network's map may be empty
        before = shown.get_attribute("src")
        tab_to(PICTURE)
        page.keyboard.press("ArrowLeft")
        expect(shown).not_to_have_attribute("src", before)
    tab_to("Remove all images")
    page.keyboard.press("Enter")
    expect(shown).to_be_hidden()


def test_a_phone_stacks_the_columns_and_keeps_the_banner_and_all_can_be_read_in_the_dark(visit):
    page = visit.page
    page.set_viewport_size({"width": 390, "height": 844})
    visit.upload(("a long name without any place to break it " + "x" * 40 + ".png", radiograph()), ("b.txt", b"?"))
    image, words = page.locator(".pn-figure").first, page.get_by_test_id("stMetric").first
    expect(image).to_be_visible()
    boxes = image.bounding_box(), words.bounding_box()
    assert boxes[0]["x"] == boxes[1]["x"]
    assert boxes[0]["width"] > 300
    widths = page.evaluate("[...document.querySelectorAll('*')].map(e => e.getBoundingClientRect().right)")
    assert max(widths) <= 390
    page.get_by_role("button", name="Remove all images").scroll_into_view_if_needed()
    expect(page.get_by_role("note").get_by_text(RESEARCH_ONLY)).to_be_in_viewport()
    visit.rest()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        expect(page.get_by_test_id("stApp")).to_have_css("color-scheme", scheme)
        seen = page.evaluate(
            CONTRASTS.replace("if (colour[3]) throw", "if (false) throw")
        )  # buttons are slightly tinted
        lowest = [text for text in seen["lowest"] if "60%" not in text[1]]  # beside the slider's handle, a part of it
        assert lowest[0][0] >= 4.5, lowest
        assert seen["ground"] < 0.05 if scheme == "dark" else seen["ground"] > 0.9
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})


def test_the_log_holds_nothing_of_what_was_brought(server):
    """Runs last: pydicom's warnings hold what they complain about, and errors quote values."""
    assert server.address in server.said
    assert not re.search("Doe|Jane|Secret|4711|Traceback|Error", server.said), server.said


def test_the_picture_in_the_readme(browser):
    """Of the demo's run, two drawn pneumonias; see the head of this file."""
    folder = os.environ.get("PNEUMOLIB_SCREENSHOTS") or pytest.skip("PNEUMOLIB_SCREENSHOTS names no folder")
    root = Path(os.environ.get("PNEUMOLIB_ROOT", REPO))
    served = Server(root, "-m", "pneumolib", "app", "demo/03_baseline_cnn", "--port")
    try:
        served.wait()
        one = Visitor(browser, served, viewport={"width": 1040, "height": 1540})
        for number in (1, 2):
            one.page.get_by_role("button", name="Draw: bacterial pneumonia").click()
            expect(one.page.get_by_role("img", name=f"pneumonia {number} with its Grad-CAM map")).to_be_visible()
        one.page.mouse.move(0, 0)
        shot = Image.open(io.BytesIO(one.page.screenshot()))
    finally:
        served.stop()
    few = shot.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(Path(folder) / "app.png", optimize=True)
    assert np.asarray(few).shape == (1540, 1040)
    assert (Path(folder) / "app.png").stat().st_size < 250_000
