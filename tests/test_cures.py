"""What the cures take from the files' facts, and what equalisation does to distances."""

import numpy as np
import pandas as pd
import pytest

from conftest import save_image
from pneumolib.audit.cures import ALL, BEFORE, cure_findings, cure_table
from pneumolib.data.manifest import read_manifest
from pneumolib.data.pixels import ImageSet, grey_distances, histograms_of
from pneumolib.data.split import split_manifest
from pneumolib.params import check


@pytest.fixture
def tell_tale(tmp_path):
    """Even light from one side, as bright in all: normal was saved at a quality of 95 and wide, pneumonia at 60, square."""
    rng = np.random.default_rng(0)
    for split, patients in (("train", range(1, 41)), ("test", range(41, 55))):
        for n in patients:
            for name, width, quality in (
                (f"NORMAL/IM-{n:04d}-0001", 96, 95),
                (f"PNEUMONIA/person{n}_virus_{n}", 64, 60),
            ):
                scene = np.add.outer(np.linspace(0, 30 * rng.uniform(), 64), np.full(width, rng.uniform(80, 160)))
                save_image(tmp_path / "set" / split / f"{name}.jpeg", scene, quality=quality)
    params = check(
        {
            "data": {"root": str(tmp_path / "set"), "val_folder": "leave_out"},
            "image": {"size_px": 32},
            "split": {"validation_fraction": 0.2},
            "evaluation": {"resamples": 100},
            "audit": {"mitigation_images": 1000, "mitigation_quality": 60},
        }
    )
    manifest = read_manifest(params.data, tmp_path / "cache")
    return manifest, split_manifest(manifest.table, params.split), params


def test_cures_take_quality_and_shape_away(tell_tale):
    manifest, split, params = tell_tale
    table = cure_table(manifest, split, params).set_index("cure")
    assert table.cv[BEFORE] == table.test[BEFORE] == 1.0
    assert table.cv["fit: crop"] == 1.0  # the quality still tells
    assert table.cv["reencode_quality: 60"] == 1.0  # the shape still tells
    assert (table.images == len(manifest.table)).all()
    assert table.index[0] == BEFORE
    assert list(table.index[-2:]) == ["at 32 x 32 px, no cure", "at 32 x 32 px, all three"]
    assert table.seen.tolist() == ["file"] * 6 + ["network"] * 2
    # In these soft pictures nothing is left but chance.
    assert table.cv_low[ALL] < 0.5 < table.cv_high[ALL]
    files, network = cure_findings(table.reset_index())
    assert files.value == table.cv[ALL]
    assert "from 1.000 (1.000-1.000) to" in files.sentence
    assert "takes part of it away" in files.sentence
    assert table.change[ALL] == pytest.approx(table.cv[ALL] - 1)
    assert table.change_low[ALL] < table.change[ALL] < table.change_high[ALL] < 0
    assert network.value == table.cv.iloc[-1]
    assert "32 x 32 px" in network.sentence


def test_a_studys_own_settings_have_a_row(tell_tale):
    manifest, split, params = tell_tale
    own = params.model_copy(update={"image": params.image.model_copy(update={"crop_border": 0.1})})
    table = cure_table(manifest, split, own)
    assert table.cure[table.seen == "network"].str.split(", ").str[1].tolist() == [
        "no cure",
        "this study's settings",
        "all three",
    ]


def scored(before, after, change):
    nothing = (np.nan,) * 3
    rows = [("none: the files as they are", "file", *before, *nothing), ("all three, with fit: crop", "file", *after, *change),
            ("at 64 x 64 px, no cure", "network", *before, *nothing),
            ("at 64 x 64 px, all three", "network", *after, *change)]  # fmt: skip
    ends = [f"{part}{end}" for part in ("cv", "change") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["cure", "seen", *ends])


@pytest.mark.parametrize(
    ("after", "change", "verdict", "words"),
    [
        ((0.90, 0.86, 0.93), (-0.05, -0.10, 0.01), "warning", "No change is shown. Very much is left"),
        ((0.75, 0.70, 0.80), (-0.20, -0.25, -0.15), "warning", "takes part of it away. Much is left"),
        ((0.57, 0.52, 0.62), (-0.38, -0.40, -0.30), "note", "takes part of it away. What is left is more than chance"),
        ((0.51, 0.47, 0.55), (-0.44, -0.50, -0.40), "ok", "Nothing is left that can be shown"),
        ((0.51, 0.47, 0.55), (0.02, 0.01, 0.03), "warning", "makes it worse"),
        ((0.78, 0.45, 0.93), (-0.17, -0.50, -0.02), "note", "too wide to say"),
        ((0.90, np.nan, np.nan), (-0.05, np.nan, np.nan), "note", "No change is shown. The interval is too wide"),
        ((0.20, 0.10, 0.30), (-0.75, -0.85, -0.65), "note", "below chance"),
        ((np.nan, np.nan, np.nan), (np.nan, np.nan, np.nan), "note", "nothing can be computed"),
    ],
)
def test_the_verdict_on_cures_follows_the_numbers(after, change, verdict, words):
    for finding in cure_findings(scored((0.95, 0.92, 0.98), after, change)):
        assert finding.verdict == verdict
        assert words in finding.sentence
        assert "nan" not in finding.sentence


def test_a_sample_holds_whole_groups_and_both_classes(tell_tale):
    manifest, split, params = tell_tale
    few = params.model_copy(update={"audit": params.audit.model_copy(update={"mitigation_images": 40})})
    table = cure_table(manifest, split, few)
    assert (table.images <= 40).all()
    assert (table.images >= 30).all()
    again = cure_table(manifest, split, few)
    pd.testing.assert_frame_equal(table, again)


def test_without_test_images_the_cures_are_still_judged(tell_tale):
    manifest, split, params = tell_tale
    table = cure_table(manifest, split[split.split != "test"], params)
    assert table.cv.notna().all()
    assert table.test.isna().all()
    assert cure_findings(table)[0].value == table.cv[table.cure == ALL].item()


def flat(split, level0, level1, n=6):
    labels = np.arange(n) % 2
    pixels = np.where(labels[:, None, None, None], level1, level0) * np.ones((n, 8, 8, 1))
    table = pd.DataFrame({"image_id": [f"{split}{i}" for i in range(n)], "split": split, "label": labels})
    return ImageSet(table, pixels.astype(np.uint8))


def test_distances_are_in_grey_values():
    histograms = histograms_of({"train": flat("train", 50, 80), "test": flat("test", 50, 100)})
    assert [share.sum() for share in histograms.histogram] == pytest.approx([1] * 4)
    assert grey_distances(histograms) == pytest.approx({"classes": 30, "shift_normal": 0, "shift_pneumonia": 20})
    with pytest.raises(KeyError, match="test"):
        grey_distances(histograms[histograms.split == "train"])
