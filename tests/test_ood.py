"""Facts of images, and out-of-distribution warnings: what is warned of, how often in vain, and that `result.json` keeps it."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from pydantic import TypeAdapter

from conftest import drawn_parts, save_image
from pneumolib.data import facts as module
from pneumolib.data.decode import decode
from pneumolib.data.drawing import draw_radiograph
from pneumolib.data.facts import colour_of, describe_images, fit_ood
from pneumolib.data.manifest import Manifest
from pneumolib.data.pixels import ImageSet
from pneumolib.params import ImageParams
from pneumolib.reporting.results import Result, plain


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Drawn radiographs, the pixels of each part, and what was fitted to training."""
    manifest, parts = drawn_parts(tmp_path_factory.mktemp("ood"), ImageParams(size_px=64), 100, 10)
    return manifest, parts, fit_ood(manifest, parts["train"], parts["val"])


def warnings_of(reference, pixels, **file):
    """The table of warnings and the sentences for images whose files are all of one size and colour."""
    one = {"width_px": 300, "height_px": 300, "colour": 0.0} | file
    facts = reference.facts(pixels, pd.DataFrame([one] * len(pixels)))
    return reference.flagged(facts), reference.warnings(facts)


def test_what_is_no_chest_is_warned_of_and_a_new_chest_is_not(demo):
    _, parts, reference = demo
    chests = parts["test"].pixels
    assert warnings_of(reference, chests)[0].content.mean() < 0.2
    words = Image.new("L", (64, 64), 255)
    ImageDraw.Draw(words).multiline_text((4, 4), "A page\nof text,\nno chest")
    for strange in (
        255 - chests,
        np.ascontiguousarray(chests.transpose(0, 2, 1, 3)),
        np.random.default_rng(0).integers(0, 256, (5, 64, 64, 1), np.uint8),
        np.asarray(words, np.uint8)[None, :, :, None],
        np.full((1, 64, 64, 1), 128, np.uint8),
    ):
        flagged, said = warnings_of(reference, strange)
        assert flagged.content.mean() > 0.9
        assert "does not look like the training images" in said[0][0]  # the most telling first


def test_each_kind_is_told_apart(demo):
    _, parts, reference = demo
    chest = parts["train"].pixels[:1]
    for pixels, file, kind, start in (
        (chest, {}, None, ""),
        (chest, {"width_px": 3000, "height_px": 200}, "size", "3000 px wide (training images: "),
        (chest, {"width_px": 3000, "height_px": 200}, "size", "width / height is 15.00"),
        ((chest // 6).astype(np.uint8), {}, "exposure", "darker on average"),
        ((chest // 6).astype(np.uint8), {}, "exposure", "less contrast"),
        (chest, {"colour": 40.0}, "colour", "a picture in colour, where radiographs are grey"),
    ):
        flagged, said = warnings_of(reference, pixels, **file)
        assert list(flagged) == ["size", "exposure", "colour", "content", "any"]
        row = flagged.iloc[0]
        assert [name for name in ("size", "exposure", "colour") if row[name]] == ([kind] if kind else [])
        assert row["any"] == bool(said[0])
        assert not kind or any(words.startswith(start) for words in said[0])


def test_warnings_are_counted_on_validation_and_the_limits_know_nothing_of_it(demo):
    manifest, parts, reference = demo
    facts = describe_images(reference, manifest, parts["val"])
    assert facts.image_id.tolist() == parts["val"].table.image_id.tolist()
    assert reference.validation_warnings == pytest.approx(reference.flagged(facts).mean().to_dict())
    assert 0 <= reference.validation_warnings["any"] < 0.4
    other = fit_ood(manifest, parts["train"], ImageSet(parts["val"].table, 255 - parts["val"].pixels[:]))
    for name in ("limits", "centre", "precision", "quantiles"):
        assert getattr(other, name) == getattr(reference, name)
    assert other.validation_warnings["content"] > 0.9


@pytest.mark.parametrize(("width", "height"), [(1024, 768), (640, 960), (997, 1009)])
def test_files_of_one_size_have_no_warning_and_result_json_keeps_all(demo, monkeypatch, width, height):
    """Width / height needs more digits than a table shows; a written reference warns of the very same images."""
    manifest, parts, _ = demo
    monkeypatch.setattr(module, "_MOST", 20)  # of many images some are looked at
    one_size = Manifest(manifest.table.assign(width_px=width, height_px=height), manifest.problems, manifest.root, True)
    found = fit_ood(one_size, parts["train"], parts["val"])
    assert found.training_images == 20
    assert found.validation_images == min(20, len(parts["val"]))
    assert found.validation_warnings["size"] == 0
    kept = TypeAdapter(Result.model_fields["ood"].annotation)
    assert kept.validate_json(kept.dump_json(kept.validate_python(plain(asdict(found))))) == found


def test_colour_is_that_of_the_file(tmp_path):
    grey = draw_radiograph("virus", 1, 0, 1)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    tinted = np.clip(rgb * [1, 0.6, 0.4], 0, 255)
    for name, pixels, least, most in (("grey", grey, 0, 0), ("rgb", rgb, 0, 2), ("tinted", tinted, 20, 200)):
        file = save_image(tmp_path / f"{name}.jpeg", pixels)
        mode = decode(file.read_bytes()).mode
        assert least <= colour_of(file, mode) == colour_of(file.read_bytes(), mode) <= most, name
