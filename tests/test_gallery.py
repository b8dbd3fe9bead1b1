"""The gallery of errors: which images it shows, what it says of them, and that a foreign file name does no harm."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pneumolib.data.drawing import draw_radiograph
from pneumolib.data.pixels import ImageSet, subset
from pneumolib.reporting.gallery import gallery, selection


def predictions(n: int = 40, wrong: tuple[int, ...] = (3, 8, 21, 30)) -> pd.DataFrame:
    """Every second image is pneumonia; the probability is the truer, the later the row, but for those called wrong."""
    labels = np.arange(n) % 2
    logits = np.where(labels == 1, 1, -1) * (0.5 + np.arange(n) / 10)
    logits[list(wrong)] *= -1
    ids = [f"person{i}_x" for i in range(n)]
    return pd.DataFrame(
        {"image_id": ids, "split": "test", "label": labels, "kind": np.where(labels == 1, "virus", "normal"),
         "group_id": ids, "logit": logits, "probability": 1 / (1 + np.exp(-logits))}
    )  # fmt: skip


def image_set(rows: pd.DataFrame, side: int = 64, channels: int = 1) -> ImageSet:
    drawn = Image.fromarray(draw_radiograph("virus")).convert("L").resize((side, side))
    pixels = np.repeat(np.asarray(drawn)[None, ..., None], len(rows), axis=0)
    return ImageSet(rows.reset_index(drop=True), np.repeat(pixels, channels, axis=3))


def maps_of(n: int, side: int = 64, place: tuple[int, int] = (10, 50)) -> np.ndarray:
    maps = np.zeros((n, side, side), np.float32)
    maps[:, place[0] - 4 : place[0] + 5, place[1] - 4 : place[1] + 5] = 1
    return maps


def shown(rows: pd.DataFrame) -> str:
    return gallery(image_set(rows), rows, maps_of(len(rows))).data


def pictures(page: str) -> list[np.ndarray]:
    data = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))).astype(int) for one in data]


def test_selection_takes_the_most_confident_errors_and_right_calls_of_both_classes():
    rows = selection(predictions(), 0.5, limit=3, right=6)
    errors, right = rows[~rows.right], rows[rows.right]
    assert errors.image_id.tolist() == ["person30_x", "person21_x", "person8_x"]
    assert right.label.tolist() == [0, 0, 0, 1, 1, 1]
    assert (set(errors.of), set(right.of)) == ({4}, {36})
    assert (rows.predicted == (rows.probability >= 0.5)).all()
    first, again, other = (selection(predictions(), 0.5, seed=seed) for seed in (2, 2, 1))
    assert first.equals(again)
    assert not first.equals(other)


def test_selection_with_no_errors_another_threshold_or_two_splits():
    assert len(selection(predictions(6, wrong=()), 0.5)) == 6
    table = predictions(4, wrong=()).assign(logit=[0.2, 3.0, -1.0, -4.0])
    table["probability"] = 1 / (1 + np.exp(-table.logit))
    # At a threshold of 0.1, logit -2.2, a logit of -1 is a false call 1.2 away, and 0.2 one 2.4 away.
    assert selection(table, 0.1, right=0).image_id.tolist() == ["person0_x", "person3_x", "person2_x"]


def test_a_card_says_who_it_is_what_was_called_and_how_sure():
    rows = selection(predictions(), 0.5, right=0)
    page = shown(rows)
    assert page.count('<figure class="card"') == page.count("<figcaption") == 4
    assert "<strong>person21_x</strong><br>True class pneumonia (virus), predicted class normal.<br>" in page
    assert "<strong>person30_x</strong><br>True class normal, predicted class pneumonia.<br>" in page
    assert f"Probability of pneumonia {rows.set_index('image_id').probability['person21_x']:.1%}." in page
    assert "The map is strongest at the upper right of the picture." in page
    assert "The 2 most confident of 4 errors; 2 are left out." in shown(selection(predictions(), 0.5, limit=2, right=0))
    assert shown(rows.iloc[:0]) == "<p>There is no such image on this split.</p>"


@pytest.mark.parametrize(("side", "channels"), [(64, 1), (224, 3)])
def test_the_picture_is_the_radiograph_over_its_map(side, channels):
    rows = selection(predictions(), 0.5, right=0)
    images = image_set(rows, side, channels)
    maps = maps_of(len(rows), side, (side // 2, side // 2))
    picture = pictures(gallery(images, rows, maps).data)[0]
    assert picture.shape == (324, 160, 3)
    above, below = picture[:160], picture[164:]
    expected = Image.fromarray(images.pixels[0, ..., 0]).resize((160, 160), Image.Resampling.BICUBIC)
    assert np.abs(above - np.asarray(expected)[..., None]).mean() < 4
    assert np.abs(above - below)[:40, :40].mean() < 4  # where the map says nothing, the radiograph stays
    assert np.abs(above - below)[78:83, 78:83].mean() > 30


def test_images_are_found_by_id_whatever_the_order():
    rows = selection(predictions(), 0.5, right=0)
    images = ImageSet(predictions(), np.repeat(np.arange(0, 240, 6, dtype=np.uint8), 64 * 64).reshape(40, 64, 64, 1))
    page = gallery(images, rows, np.zeros((40, 64, 64), np.float32)).data
    assert [round(p[:160].mean() / 6) for p in pictures(page)] == [30, 21, 8, 3]
    assert page.count("<br>The map is empty.") == 4
    with pytest.raises(KeyError, match="nobody"):
        subset(images, ["person3_x", "nobody"])
