"""Images unlike the training images: what is warned of, how often in vain, and that the numbers survive `result.json`."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from conftest import drawn_parts, save_image
from pneumolib.data.decode import decode
from pneumolib.data.drawing import draw_radiograph
from pneumolib.data.familiarity import KINDS, alarms, colour_of, content_features
from pneumolib.data.familiarity_fit import describe_images, fit_familiarity
from pneumolib.data.images import ImageSet, network_pixels
from pneumolib.data.manifest import Manifest
from pneumolib.params import ImageParams
from pneumolib.reporting.results import FamiliarityResult, plain
from pneumolib.serve.trained import _familiarity

IMAGE = ImageParams(size_px=64)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Drawn radiographs, the pixels of each part, and what was fitted to training."""
    manifest, parts = drawn_parts(tmp_path_factory.mktemp("familiarity"), IMAGE, 100, 10)
    return manifest, parts, fit_familiarity(manifest, parts["train"], parts["val"])


def alarms_of(familiarity, pixels, width=300, height=300, colour=0.0):
    files = pd.DataFrame(
        {"width_px": [width] * len(pixels), "height_px": [height] * len(pixels), "colour": [colour] * len(pixels)}
    )
    facts = familiarity.facts(pixels, files)
    return alarms(familiarity, facts), familiarity.warnings(facts)


def test_what_is_no_chest_is_warned_of_and_a_new_chest_is_not(demo):
    _, parts, familiarity = demo
    chests = parts["test"].pixels
    seen, _ = alarms_of(familiarity, chests)
    assert seen.content.mean() < 0.2
    rng = np.random.default_rng(0)
    words = Image.new("L", (64, 64), 255)
    ImageDraw.Draw(words).multiline_text((4, 4), "A page\nof text,\nno chest")
    for strange in (
        255 - chests,
        np.ascontiguousarray(chests.transpose(0, 2, 1, 3)),
        rng.integers(0, 256, (5, 64, 64, 1), np.uint8),
        np.asarray(words, np.uint8)[None, :, :, None],
        np.full((1, 64, 64, 1), 128, np.uint8),
    ):
        flagged, said = alarms_of(familiarity, strange)
        assert flagged.content.mean() > 0.9
        assert "does not look like the training images" in said[0][0]


def test_each_kind_is_told_apart(demo):
    _, parts, familiarity = demo
    chest = parts["train"].pixels[:1]
    assert not alarms_of(familiarity, chest)[0].drop(columns="content").to_numpy().any()
    flagged, said = alarms_of(familiarity, chest, width=3000, height=200)
    assert flagged["size"].all()
    assert not flagged[["exposure", "colour"]].to_numpy().any()
    assert any(words.startswith("3000 px wide (training images: ") for words in said[0])
    assert any(words.startswith("width / height is 15.00") for words in said[0])
    flagged, said = alarms_of(familiarity, (chest // 6).astype(np.uint8))
    assert flagged.exposure.all()
    assert any(words.startswith("darker on average") for words in said[0])
    flagged, said = alarms_of(familiarity, chest, colour=40.0)
    assert flagged.colour.all()
    assert "a picture in colour, where radiographs are grey" in said[0]


def test_false_alarms_are_counted_on_validation(demo):
    manifest, parts, familiarity = demo
    facts = describe_images(familiarity, manifest, parts["val"])
    assert facts.image_id.tolist() == parts["val"].table.image_id.tolist()
    counted = alarms(familiarity, facts).mean()
    assert familiarity.false_alarms == pytest.approx(counted.to_dict())
    assert 0 <= familiarity.false_alarms["any"] < 0.4
    assert familiarity.validation_images == len(parts["val"])
    nobody = ImageSet(parts["val"].table.iloc[:0], parts["val"].pixels[:0])
    assert set(fit_familiarity(manifest, parts["train"], nobody).false_alarms.values()) == {None}


def test_limits_know_nothing_of_validation_and_test(demo):
    manifest, parts, familiarity = demo
    turned = ImageSet(parts["val"].table, 255 - parts["val"].pixels[:])
    other = fit_familiarity(manifest, parts["train"], turned)
    assert (other.limits, other.centre, other.precision) == (
        familiarity.limits,
        familiarity.centre,
        familiarity.precision,
    )
    assert other.false_alarms["content"] > 0.9


@pytest.mark.parametrize(("width", "height"), [(1024, 768), (640, 960), (997, 1009)])
def test_files_of_one_size_are_no_false_alarm(demo, width, height):
    """Whose width / height needs more digits than a table shows."""
    manifest, parts, _ = demo
    one_size = Manifest(manifest.table.assign(width_px=width, height_px=height), manifest.problems, manifest.root, True)
    found = fit_familiarity(one_size, parts["train"], parts["val"])
    assert found.false_alarms["size"] == 0
    kept = FamiliarityResult.model_validate_json(FamiliarityResult(**plain(asdict(found))).model_dump_json())
    assert _familiarity(kept) == found


def test_of_many_images_some_are_looked_at(demo, monkeypatch):
    manifest, parts, _ = demo
    monkeypatch.setattr("pneumolib.data.familiarity_fit._MOST", 10)
    found = fit_familiarity(manifest, parts["train"], parts["val"])
    assert (found.training_images, found.validation_images) == (10, 10)
    assert found.false_alarms["any"] * 10 == pytest.approx(round(found.false_alarms["any"] * 10))


def test_result_json_keeps_all_of_it(demo):
    """Rounded to six digits when it is fitted, so that a written one warns of the very same images."""
    _, parts, familiarity = demo
    kept = FamiliarityResult.model_validate_json(FamiliarityResult(**plain(asdict(familiarity))).model_dump_json())
    assert _familiarity(kept) == familiarity
    features = content_features(parts["test"].pixels)
    np.testing.assert_array_equal(_familiarity(kept).distances(features), familiarity.distances(features))
    assert _familiarity(None) is None


def test_features_mind_what_is_where_and_not_exposure(demo):
    _, parts, _ = demo
    pixels = parts["train"].pixels[:3]
    features = content_features(pixels)
    assert features.shape == (3, 67)
    brighter = content_features((pixels * 0.8 + 40).astype(np.uint8))
    upside_down = content_features(np.ascontiguousarray(pixels[:, ::-1]))
    assert np.abs(features - brighter)[:, :64].mean() < 0.2 * np.abs(features - upside_down)[:, :64].mean()
    np.testing.assert_allclose(content_features(np.repeat(pixels, 3, axis=3)), features, atol=0.05)


def test_colour_is_that_of_the_file(tmp_path):
    grey = draw_radiograph("virus", 1, 0, 1)
    rgb = np.repeat(grey[..., None], 3, axis=2)
    tinted = np.clip(rgb * [1, 0.6, 0.4], 0, 255)
    for name, pixels, least, most in (("grey", grey, 0, 0), ("rgb", rgb, 0, 2), ("tinted", tinted, 20, 200)):
        raw = save_image(tmp_path / f"{name}.jpeg", pixels).read_bytes()
        assert least <= colour_of(raw, decode(raw).mode) <= most, name


def test_a_network_of_rgb_sees_no_colour_where_the_file_has_none():
    pixels = network_pixels(Image.fromarray(draw_radiograph("IM", 1, 0, 1)), ImageParams(size_px=64, channels=3))
    files = pd.DataFrame({"width_px": [64], "height_px": [64], "colour": [0.0]})
    assert content_features(pixels[None]).shape == (1, 67)
    assert set(KINDS) >= set(files)
