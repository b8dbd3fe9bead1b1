"""The page of a trained model in a real browser, headless, with real uploads. Needs Chromium, as `test_browser`."""

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
import pytest
from PIL import Image

from conftest import REPO
from pneumolib.data.drawing import draw_radiograph
from pneumolib.serve.trained import RESEARCH_ONLY
from test_browser import CONTRASTS, chromium, expect, playwright
from test_decode import claiming, dicom_bytes

pytest.importorskip("streamlit", reason="streamlit is not installed: pip install .[app]")

PATIENT = "Doe^Jane"  # in the names of its files, too


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of the page. By the end no file was left, and the log holds nothing of what was brought."""
    chromium()  # nothing is started where nothing can be looked at
    root, home = tmp_path_factory.mktemp("app"), tmp_path_factory.mktemp("home")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    own = {"PNEUMOLIB_ROOT": str(root), "PYTHONPATH": f"{REPO}:{REPO / 'tests'}"} | dict.fromkeys(
        ("HOME", "TMPDIR"), str(home)
    )
    process = subprocess.Popen(
        [sys.executable, str(REPO / "tests/app_child.py"), str(port)], cwd=root, text=True, bufsize=1,
        env=os.environ | own | {"MPLCONFIGDIR": mpl.get_cachedir()}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    lines, address = [], f"http://localhost:{port}"
    reader = threading.Thread(target=lambda: lines.extend(process.stdout))
    reader.start()
    try:
        until = time.monotonic() + 120
        while not answers(address):
            assert process.poll() is None, lines
            assert time.monotonic() < until, lines
            time.sleep(0.1)
        before = {*root.rglob("*"), *home.rglob("*")}
        yield address
        assert {*root.rglob("*"), *home.rglob("*")} == before
    finally:
        process.kill()  # at once: a tab that is still open would be waited for
        process.wait()
        reader.join()
        process.stdout.close()
    assert address in "".join(lines)
    # pydicom's warnings hold what they complain about, and errors quote values.
    assert not re.search("Doe|Jane|Secret|4711|Traceback|Error", "".join(lines)), lines


def answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/_stcore/health", timeout=5):
        return True
    return False


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
        self.address, self.faults = server, []
        self.page = browser.new_context(reduced_motion="reduce", **options).new_page()
        self.page.set_default_timeout(30_000)
        self.page.on("request", self.note_request)
        # Asked for file choosers only when a key is pressed, Chromium may open its own dialog first.
        self.page.on("filechooser", lambda _: None)
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("console", lambda said: said.type == "error" and self.faults.append(said.text))
        self.page.goto(server)
        expect(self.page.get_by_role("button", name="Draw: normal")).to_be_visible(timeout=60_000)

    def note_request(self, request):
        local = self.address.removeprefix("http")
        if not request.url.startswith((f"http{local}", f"ws{local}", "data:", f"blob:{self.address}")):
            self.faults.append(f"request: {request.url}")

    def upload(self, *files) -> None:
        """Paths, or pairs of name and bytes."""
        payload = [{"name": f[0], "mimeType": "", "buffer": f[1]} if isinstance(f, tuple) else f for f in files]
        self.rest()
        field = self.page.locator("input[type=file]")
        expect(field).to_have_count(1)  # after an upload, the next field is shown beside the last one for a moment
        field.set_input_files(payload)

    def rows(self, number: int) -> list[str]:
        """The table of images that were read, once it has so many: name, probability and class, as a screen reader has them."""
        expect(self.page.get_by_role("heading", name=f"{number} images, threshold")).to_be_visible()
        rows = self.page.locator("canvas tbody tr")
        expect(rows).to_have_count(number)
        cells = [row.locator("td").all_text_contents() for row in rows.all()]
        return [" | ".join(row[:3]) for row in cells]

    def choose(self, box: str, option: str) -> None:
        """By keyboard; the list closes when the page moves, as it does when a field is first reached."""
        self.rest()
        field = self.page.get_by_role("combobox", name=box)
        field.focus()
        for _ in range(5):
            field.press("ArrowDown")
            with contextlib.suppress(playwright.TimeoutError):
                self.page.get_by_role("option", name=option, exact=True).click(timeout=2000)
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
    dicom = dicom_bytes(draw_radiograph("virus"), bits=8)
    large = tmp_path / "large.png"
    large.touch()
    os.truncate(large, 65 * 2**20)  # holes: nothing is written
    visit.upload(
        ("child.jpeg", radiograph("JPEG")), ("broken.png", radiograph()[:3000]), (f"{PATIENT}.dcm", dicom), ("empty.png", b""),
        ("words.txt", b"no image"), ("bomb.png", claiming(9000, 9000)), (f"{PATIENT} 2.dcm", dicom[:9000]), ("last.png", radiograph()),
    )  # fmt: skip
    rows, refused = visit.rows(3), visit.page.locator(".pn-name").filter(has_text="not read").all_inner_texts()
    for row, name in zip(rows, ("child.jpeg", "DICOM 1", "last.png"), strict=True):
        assert re.fullmatch(rf"{name} \| 0\.\d+ \| (pneumonia|normal)", row)
    assert refused[0].startswith("broken.png: not read: does not decode")
    assert refused[1:4] == [
        "File 4: not read: empty file (0 bytes)",
        "File 5: not read: not a JPEG, PNG or DICOM image",
        "bomb.png: not read: 9000 x 9000 pixels; data.max_megapixels allows 30 million",
    ]
    assert refused[4].startswith("DICOM 2: not read: DICOM does not decode")
    visit.choose("Image", "DICOM 1")
    expect(visit.page.get_by_role("img", name="DICOM 1 with its Grad-CAM map")).to_be_visible()
    with visit.page.expect_download() as taken:
        visit.page.get_by_role("button", name="Download the table").click()
    table = Path(taken.value.path()).read_text(encoding="utf-8")
    assert [row["file"] for row in csv.DictReader(io.StringIO(table))][2] == "DICOM 1"
    shown = re.sub(r"base64,[^\"]+|0\.\d+", "", visit.page.content() + table)  # any digits can be in these
    for secret in ("Doe", "Jane", "Secret", "4711"):  # names of files, of patients, and numbers
        assert secret not in shown
    visit.upload(large)
    expect(visit.page.get_by_text("File 9: not read: 65.0 MB; data.max_file_mb allows 64 MB")).to_be_visible()


def test_a_file_that_is_too_large_to_be_sent_is_refused_without_its_name(visit, tmp_path):
    huge = tmp_path / f"{PATIENT}.dcm"
    huge.touch()
    os.truncate(huge, 201 * 2**20)
    visit.upload(huge)
    place = visit.page.get_by_test_id("stFileUploaderDropzone")
    expect(place.get_by_test_id("stFileChip")).to_have_attribute("aria-invalid", "true")
    said = place.evaluate("element => getComputedStyle(element, '::after').content")
    assert said == '"A file was refused: it is larger than 200 MB."'
    expect(place.get_by_text("Doe")).to_be_hidden()
    visit.upload(("next.png", radiograph()))
    expect(visit.page.get_by_role("img", name="next.png with its Grad-CAM map")).to_be_visible()
    expect(place.get_by_test_id("stFileChip")).to_have_count(0)
    assert "Doe" not in visit.page.content()


def stored(address: str) -> int:
    """Bytes of uploads in Streamlit's own store, of all visitors, by its own count."""
    with urllib.request.urlopen(f"{address}/_stcore/metrics", timeout=30) as answer:
        found = re.findall(r"UploadedFileManager.*?} (\d+)", answer.read().decode())
    return sum(map(int, found))


def test_uploads_are_kept_once_and_what_is_removed_is_gone(visit, server):
    """Files come in pairs of equal names, whose markup and control codes are shown as text."""
    strange = "*a* $x$ :material/home: [b](http:c) \x1b<img src=x onerror=document.title=1>.png"
    for number in range(3):
        visit.upload((strange, radiograph(number=2 * number)), (f"{number}.png", radiograph(number=2 * number + 1)))
        rows = visit.rows(2 * number + 2)
        assert stored(server) == 0
    assert rows[0].startswith(strange.replace("\x1b", ""))
    assert visit.page.locator("main [onerror], main em, main a[href^='http:c'], main .katex").count() == 0
    assert visit.page.title() == "pneumolib: a trained model at work"
    expect(visit.page.get_by_text('"Remove all images" deletes them at once')).to_be_visible()
    visit.remove_all()
    assert stored(server) == 0


@pytest.mark.slow
def test_two_visitors_at_once_see_their_own_files_and_the_same_classes(visit, browser, server):
    """The other one came by the address's number."""
    other = Visitor(browser, server.replace("localhost", "127.0.0.1"))
    for one, name, files in ((visit, "mine", 12), (other, "theirs", 3)):
        one.upload(*((f"{name} {number}.png", radiograph(number=number)) for number in range(files)))
    found = visit.rows(12), other.rows(3)
    assert [row.split(" | ")[0] for row in found[0]] == [f"mine {number}.png" for number in range(12)]
    assert "theirs" not in visit.page.content()
    assert "mine" not in other.page.content()
    assert [row.replace("mine", "theirs") for row in found[0][:3]] == found[1]
    expect(other.page.get_by_test_id("stMetricValue").first).to_have_text(re.compile(r"\d% → (pneumonia|normal)$"))
    assert other.faults == []
    other.page.context.close()


def test_a_run_is_chosen_and_said_to_be_drawn(visit):
    page = visit.page
    drawn = page.get_by_text("trained on drawn images")
    expect(drawn).to_be_visible()
    page.get_by_role("button", name="Draw: normal").click()
    figure = page.locator(".pn-figure figcaption").filter(has_not_text="Grad-CAM")
    used = "; used by the network, at 32 x 32 pixels"
    expect(figure).to_have_text([f"As read{used}", "Histogram equalisation", "CLAHE"])
    expect(page.get_by_text("the threshold of 30.0%")).to_be_visible()
    expect(page.get_by_text("The probability is not calibrated")).to_be_visible()
    visit.choose("Trained run", "tiny/03_baseline_cnn-clahe")
    expect(figure).to_have_text(["As read", "Histogram equalisation", f"CLAHE{used}"])
    expect(page.get_by_text("the threshold of 90.0%")).to_be_visible()
    expect(drawn).to_be_hidden()
    visit.choose("Trained run", "tiny/03_baseline_cnn")


def test_the_keyboard_is_enough(visit):
    page, shown = visit.page, visit.page.get_by_role("img", name="with its Grad-CAM map")
    visit.rest()
    page.bring_to_front()
    page.locator("main").focus()

    # Never past the end of the page: the browser then takes the focus.
    def press_at(name: str, key: str = "Tab") -> None:
        for _ in range(6):
            page.keyboard.press(key)
            said = page.evaluate("(e => e.getAttribute('aria-label') || e.innerText)(document.activeElement)")
            if said.strip().split("\n")[-1] == name:
                return page.keyboard.press("Enter")
        raise AssertionError(f"{name} cannot be reached")

    press_at("Draw: bacterial pneumonia")
    expect(shown).to_be_visible()
    visit.rest()  # the end of the page follows
    with page.expect_download():
        press_at("Download the table (CSV)")
    press_at("Remove all images", "Shift+Tab")
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
        seen = page.evaluate(CONTRASTS.replace("if (colour[3]) throw", "if (false) throw"))  # tinted buttons
        lowest = [text for text in seen["lowest"] if "60%" not in text[1]]  # beside the slider's handle, a part of it
        assert lowest[0][0] >= 4.5, lowest
        assert seen["ground"] < 0.05 if scheme == "dark" else seen["ground"] > 0.9
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 900})
