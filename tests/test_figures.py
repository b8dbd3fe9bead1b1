"""Figures and sentences of the data pages: drawn from small tables, with words that follow the numbers."""

import base64
import re
from html import escape

import numpy as np
import pandas as pd
import pytest

from pneumolib.data.manifest import Manifest
from pneumolib.data.pixels import ImageSet, grey_distances, histograms_of
from pneumolib.reporting import data_plots
from pneumolib.reporting.results import interval
from pneumolib.reporting.session import FOLDER_VARIABLE, RUN_VARIABLE, _opened, start
from pneumolib.reporting.words import show


@pytest.fixture
def manifest():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    table = pd.DataFrame(
        {
            "image_id": [f"i{n:02d}" for n in range(40)], "path": "x", "label": labels,
            "kind": np.where(labels == 1, "virus", "normal"), "group_id": [f"g{n // 2}-{n % 2}" for n in range(40)],
            "source_split": np.where(np.arange(40) < 30, "train", "test"),
            "width_px": 300 + 10 * np.arange(40), "height_px": 250, "mode": np.where(labels == 1, "RGB", "L"),
            "bytes": 20_000, "sha256": "", "quantisation_sum": 1858,
            "mean_intensity": rng.uniform(90, 150, 40).round(1), "sd_intensity": 50.0, "pixel_hash": "",
        }
    )  # fmt: skip
    return Manifest(table, pd.DataFrame({"path": ["broken"], "reason": ["empty"], "files": [1]}), None, synthetic=False)


@pytest.fixture
def split(manifest):
    parts = np.where(manifest.table.source_split == "test", "test", np.where(np.arange(40) < 24, "train", "val"))
    return manifest.table[["image_id", "label", "kind", "group_id"]].assign(split=parts)


def images(split, part="train", low=60, high=120):
    rows = split[split.split == part].reset_index(drop=True)
    levels = np.where(rows.label == 1, high, low)[:, None, None, None]
    return ImageSet(rows, (levels + np.zeros((1, 16, 16, 1))).astype(np.uint8))


def png(plot) -> bytes:
    page = plot._repr_mimebundle_()["text/html"]
    assert f'alt="{escape(plot.alt)}"' in page
    return base64.b64decode(re.search('base64,([^"]+)"', page)[1])


@pytest.mark.parametrize("kind", ["virus", "caused by Mycoplasma " * 8, "no_break_is_possible" * 9, "a\nb\x1b[31m$x$"])
def test_a_legend_stays_within_the_figure_whatever_kinds_are_called(kind):
    """Pneumonia of several kinds in two folders: each kind has its label, and each bar its room."""
    kinds = ["normal", kind, f"{kind} and others", f"{kind} of unknown cause"]
    counts = pd.DataFrame([(name, part, 9) for name in kinds for part in ("train", "test")])
    plot = data_plots.class_counts(counts.set_axis(["kind", "source_split", "images"], axis=1))
    png(plot)
    [legend], [ax] = plot.figure.legends, plot.figure.axes
    frame, drawn = plot.figure.bbox, legend.get_window_extent()
    assert frame.x0 <= drawn.x0 < drawn.x1 <= frame.x1
    assert frame.y0 <= drawn.y0 < drawn.y1 <= ax.get_window_extent().y0
    assert ax.get_window_extent().height > 80
    assert len(legend.texts) == 4
    assert all(text.get_text().replace("\n", "").isprintable() for text in legend.texts)


def test_every_data_figure_is_drawn_with_its_numbers_in_words(manifest, split):
    train = images(split)
    pixel_facts = histograms_of({"train": train, "test": images(split, "test", 70, 130)})
    for plot, *said in [
        (data_plots.flow(manifest, split), "41 files", "Training, 24 images, 24 groups, 50.0% pneumonia", "published, 10 images"),
        (data_plots.mean_images(train.pixels, train.table.label.to_numpy()), "from +60 to +60 grey values"),
        (data_plots.grey_values(pixel_facts), "receives them, normal, test 70; as the network receives them, pneumonia, test 130"),
        (data_plots.file_features(manifest.table, split), "JPEG quantisation: 1.86e+03 for normal"),
        (data_plots.class_counts(manifest.counts()), "Images of each kind by folder."),
    ]:  # fmt: skip
        assert all(words in plot.alt for words in said)
        assert png(plot).startswith(b"\x89PNG")
    assert grey_distances(pixel_facts) == {"classes": 60, "shift_normal": 10, "shift_pneumonia": 10}
    values = [f"{of}{end}" for of in ("cv", "test") for end in ("", "_low", "_high")]
    none = pd.DataFrame({"name": ["a"]} | dict.fromkeys(values, np.nan))
    assert png(data_plots.auroc_intervals(none, "name")).startswith(b"\x89PNG")


def test_a_figure_and_a_table_have_numbers_and_files(manifest, tmp_path, monkeypatch):
    """By hand, a cell that runs again keeps number and file."""
    monkeypatch.setenv("PNEUMOLIB_ROOT", str(tmp_path))
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "work"))
    monkeypatch.delenv(RUN_VARIABLE, raising=False)
    plot = data_plots.class_counts(manifest.counts())
    cells = [interval(0.8, 0.7, 0.9), interval(0.5, None, None)]
    table = pd.DataFrame({"Part": ["a", "b"], "AUROC": cells, "n": [3, 4]})
    for labels, files in (([1, 1, 1, 1], ["", ""]), ([1, 1, 2, 2], ["", "-2"])):
        folder = start("03_baseline_cnn").folder
        pages = [page for _ in range(2)
                 for page in (plot._repr_mimebundle_()["text/html"], show(table, caption="Parts <b>.").data)]  # fmt: skip
        assert [int(re.search(r"<strong>\w+ (\d)\.</strong>", page)[1]) for page in pages] == labels
        drawn = [(folder / f"figures/class-counts{end}.svg").read_bytes() for end in files]
        assert drawn[0] == drawn[1]
        text = (folder / f"tables/parts-b{files[1]}.csv").read_text()
        monkeypatch.setenv(RUN_VARIABLE, "03_baseline_cnn")  # the second time it is a run
        assert text == "Part,AUROC,AUROC low,AUROC high,n\na,0.800,0.700,0.900,3\nb,0.500,,,4\n"
    assert "Parts &lt;b&gt;." in pages[-1]
    assert all(cell in pages[-1] for cell in ("0.800<br><small>(0.700&nbsp;to 0.900)</small>", "0.500<br><small>(no"))
    _opened.clear()
