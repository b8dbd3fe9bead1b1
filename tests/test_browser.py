"""Pages in a real browser, headless: nothing is fetched, nothing fails, and what a page offers works. Needs Chromium.

Installs nothing: without a browser the tests are skipped with the reason. `CHROMIUM` names one that is not on the path.
"""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from conftest import TINY_AUDIT, TINY_BASELINE, Project, save_image
from pneumolib.text import printable
from test_pages import ROOT, build_site

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
expect = playwright.expect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
RUN_PAGE = "whole/03_baseline_cnn-a"
PAGES = (RUN_PAGE, "whole/03_baseline_cnn-d", "whole/index", "whole/checklist", "unlike/index", "index")

# Every text that is shown, with the WCAG 2 contrast between its colour and what lies behind it; the lowest five.
# https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
      if (colour[3]) throw new Error("half-transparent ground: " + at.outerHTML.slice(0, 80));
    }
    throw new Error("no ground");
  };
  const luminance = colour => {
    const [r, g, b] = colour.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility()) continue;
    const [a, b] = [rgba(getComputedStyle(element).color), ground(element)].map(luminance).sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), element.outerHTML.slice(0, 120)]);
  }
  return { texts: found.length, lowest: found.sort((x, y) => x[0] - y[0]).slice(0, 5), ground: luminance(ground(document.body)) };
}"""


def chromium() -> str:
    """The path of a Chromium or Chrome; skips where there is none."""
    found = os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    return found or pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    chromium()  # nothing is built where nothing can be looked at
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("site")
        patch.setenv(ROOT, str(root))
        yield build_site(root)


@pytest.fixture(scope="module")
def browser(site):
    with playwright.sync_playwright() as tool:
        started = tool.chromium.launch(executable_path=chromium())
        yield started
        started.close()


class Visitor:
    """Opens pages in one tab and keeps what went wrong on any: requests beyond the file itself, errors, refusals."""

    def __init__(self, browser, site, **options):
        self.site, self.faults, self.failures = site, [], []
        self.page = browser.new_context(offline=True, reduced_motion="reduce", **options).new_page()
        self.page.on("request", self.note_request)
        self.page.on("requestfailed", lambda request: self.failures.append(request.failure))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("console", lambda said: self.faults.append(f"{said.type}: {said.text}"))

    def note_request(self, request):
        if not request.url.startswith(("file:", "data:")):
            self.faults.append(f"request: {request.url}")

    def __call__(self, name=RUN_PAGE, width=1280):
        self.page.set_viewport_size({"width": width, "height": 800})
        self.page.goto((self.site / f"{name}.html").as_uri())
        return self.page


@pytest.fixture
def visit(browser, site):
    """`visit(name, width)` gives the page; by the end nothing was fetched and nothing has failed."""
    visitor = Visitor(browser, site)
    yield visitor
    assert visitor.faults == []


@pytest.mark.parametrize("name", PAGES)
def test_every_page_can_be_read_on_a_phone_and_in_the_dark(visit, name):
    """No page moves sideways. WCAG 2 AA asks for 4.5 to 1 of text in body size; code and folded parts count too."""
    page = visit(name, width=360)
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.set_viewport_size({"width": 1280, "height": 800})
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        seen = page.evaluate(CONTRASTS)
        assert seen["texts"] > 20
        assert seen["lowest"][0][0] >= 4.5, (scheme, seen["lowest"])
        assert seen["ground"] < 0.05 if scheme == "dark" else seen["ground"] > 0.9
    grounds = page.locator("main img").evaluate_all("all => all.map(one => getComputedStyle(one).backgroundColor)")
    assert set(grounds) <= {"rgb(255, 255, 255)"}  # figures keep theirs in the dark


def test_each_line_of_the_contents_leads_to_its_heading(visit):
    page = visit()
    links = page.locator(".contents a")
    assert links.count() == 7
    for link in links.all():
        link.click()
        heading = page.locator(f"[id='{page.evaluate('decodeURIComponent(location.hash.slice(1))')}']")
        assert heading.inner_text() == link.inner_text()
        expect(heading).to_be_in_viewport()
    expect(links.last).to_have_attribute("aria-current", "location")
    links.nth(2).click()
    expect(page.locator("[aria-current]")).to_have_text(["Training"])
    expect(links.first).to_be_in_viewport()  # the contents stay at the side


def test_one_switch_opens_and_folds_all_code(visit):
    page = visit()
    switch, code = page.locator(".code-switch"), page.locator(".highlight")
    expect(code.first).to_be_hidden()
    expect(switch).to_have_text("Show code")
    switch.press("Space")
    expect(switch).to_have_text("Hide code")
    page.reload()  # remembered for this session
    assert all(block.is_visible() for block in code.all())
    switch.press("Enter")
    assert not any(block.is_visible() for block in code.all())


def test_figures_open_large_and_close_again(visit):
    """Those of outputs in HTML too; by keyboard and by mouse; focus goes back to where it was."""
    page = visit()
    dialog, ramp = page.locator("dialog"), "A ramp from black to white"
    for image, said in ((ramp, ramp), ("gallery 2", "case 2: called 0.93"), ("maps 1", "case 1")):
        button = page.get_by_role("button", name=image, exact=True)
        small = button.locator("img").bounding_box()
        button.focus()
        page.keyboard.press("Enter")
        expect(dialog).to_be_visible()
        large = dialog.locator("img")
        expect(large).to_have_attribute("alt", image)
        assert large.bounding_box()["width"] > small["width"]
        expect(dialog.locator("p")).to_contain_text(said)
        page.keyboard.press("Escape")
        expect(dialog).to_be_hidden()
        expect(button).to_be_focused()
        button.click()
        large.click()
        expect(dialog).to_be_hidden()


def test_without_scripts_everything_can_be_read(browser, site):
    visit = Visitor(browser, site, java_script_enabled=False)
    page = visit()
    for there in (".contents a", "main figure img", ".card img"):
        expect(page.locator(there).first).to_be_visible()
    expect(page.locator(".code-switch")).to_be_hidden()
    page.locator("details.code summary").first.click()
    expect(page.locator(".highlight").first).to_be_visible()
    page = visit("whole/index")
    assert page.locator("tbody tr").count() == 6
    expect(page.locator(".filter")).to_be_hidden()
    expect(page.locator("thead button")).to_have_count(0)
    assert visit.faults == []


def test_what_an_output_asks_of_a_network_is_refused(browser, site):
    """By the policy in the page's head, before anything leaves the browser."""
    text = (site / f"{RUN_PAGE}.html").read_text(encoding="utf-8")
    calls = "".join(
        f"<{tag}http://127.0.0.1:9/{i}'>"
        for i, tag in enumerate(("img src='", "link rel=stylesheet href='", "script src='"))
    )
    (site / "whole/calls.html").write_text(text.replace("</main>", f"{calls}</script></main>"), encoding="utf-8")
    visit = Visitor(browser, site)
    visit("whole/calls")
    assert visit.failures == ["csp"] * 3


RUN = "window.marked=1"
IMAGE, SVG = f"<img src=x onerror='{RUN}'>", f"<svg onload='{RUN}'>"
MARKUP = (f"<script>{RUN}</script>", IMAGE, f'">{SVG}', f"[a](javascript:{RUN})", "*virus* `b` ~~c~~",
          "$x_$ $\\no{$", "\u202ea\x1b[2J\u200b")  # fmt: skip
NAMES_OF_FILES = (f'">{IMAGE}.png', f"![a](javascript:{RUN}).png", f"{SVG}.png", "$_$\u202e.png")
MARKED_STUDY = """\
data: {source: csv, root: data/own/table.csv}
split: {validation_fraction: 0.3, ratio_tolerance_points: 25.0}
image: {size_px: 32, channels: 1}
"""


def draw_marked(folder: Path, seed: int) -> None:
    """A table data set with markup in every text: kinds, sites, groups and names of files, one of them twice."""
    rng, rows = np.random.default_rng(seed), []
    for number in range(40):
        ill, mark = number % 2, MARKUP[number // 2 % len(MARKUP)]
        name = f"{number}{NAMES_OF_FILES[number % 4]}"
        if number < 39:
            pixels = rng.integers(60 * ill, 160 + 60 * ill, (32, 32))
        save_image(folder / name, pixels)
        rows.append([name, ill, f"{number} {mark}", mark if ill else "", "test" if number % 3 == 0 else "train", mark])
    table = pd.DataFrame(rows, columns=["path", "label", "group_id", "kind", "split", "site"])
    table.to_csv(folder / "table.csv", index=False)


@pytest.fixture(scope="module")
def marked(tmp_path_factory) -> Path:
    """`reports/` of a small study of such data, with a finished run of every kind."""
    chromium()
    project = Project(tmp_path_factory.mktemp("marked"))
    external = next((project.root / "notebooks").glob("*_external_validation.ipynb")).stem
    comparison = next((project.root / "notebooks").glob("*_comparison.ipynb")).stem
    runs = {"study": MARKED_STUDY, "01_exploration": TINY_AUDIT, "03_baseline_cnn": TINY_BASELINE, comparison: "",
            external: "external: {data: {source: csv, root: data/other/table.csv}, recalibration_fraction: 0.5}\n"}  # fmt: skip
    for name, words in runs.items():
        project.write(f"params/marked/{name}.yaml", words)
    for seed, name in enumerate(("own", "other")):
        draw_marked(project.root / "data" / name, seed)
    project.run("report", "marked")
    return project.root / "reports"


@pytest.mark.slow
def test_what_comes_from_data_is_text_on_every_page(browser, marked):
    """No script runs or is refused, no element comes from data, and what was written there is read as text."""
    visit, read = Visitor(browser, marked), ""
    for file in sorted(marked.rglob("*.html")):
        page = visit(file.relative_to(marked).with_suffix(""))
        assert page.evaluate("window.marked") is None, file
        assert page.locator("script").count() == file.read_text("utf-8").count("</script>\n</body>"), file
        strange = "main :is(svg, del), main em, main img:not([src^='data:']), [onerror], [onload], [href^='javascript']"
        assert page.locator(strange).evaluate_all("all => all.map(one => one.outerHTML)") == [], file
        read += page.evaluate("document.body.textContent")
        read += " ".join(page.locator("img").evaluate_all("all => all.map(one => one.alt)"))
    assert [mark for mark in (*MARKUP, *NAMES_OF_FILES) if printable(mark) not in read] == []
    assert printable(read, "\n\t\r\xa0") == read
    assert visit.faults == []


def shown(page) -> list[str]:
    """The names of the rows that are shown, shortened to their ends."""
    return [re.sub(r".*-", "", row.inner_text()) for row in page.locator("tbody tr:visible th").all()]


def test_an_index_is_filtered_and_sorted(visit):
    page = visit("whole/index", width=360)
    before = shown(page)
    assert before == ["d", "07_comparison", "c", "01_quick", "a", "b"]
    box = page.get_by_role("searchbox")
    box.fill("BASELINE done")
    assert shown(page) == ["a", "b"]
    expect(page.locator("output")).to_have_text("2 of 6")
    box.fill("")
    assert shown(page) == before
    head = page.locator("thead th").nth(3)
    page.get_by_role("button", name="Duration").press("Enter")
    # As numbers: 8 s, 9 s, 1 min 15 s, 1 h 23 min; then those without.
    assert shown(page)[:4] == ["c", "01_quick", "a", "b"]
    expect(head).to_have_attribute("aria-sort", "ascending")
    page.get_by_role("button", name="Duration").click()
    assert shown(page)[:4] == ["b", "a", "01_quick", "c"]
    expect(head).to_have_attribute("aria-sort", "descending")
    page.get_by_role("button", name="Result").click()
    assert shown(page)[:3] == ["b", "c", "a"]  # by AUROC: 0.7, 0.8, 0.9
    assert page.locator("th[aria-sort]").count() == 1
