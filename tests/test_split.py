"""The split: groups never cross, the class ratio is kept, the order of rows plays no part."""

import numpy as np
import pandas as pd
import pytest

from pneumolib.data.split import SplitError, check_split, split_manifest
from pneumolib.params import SplitParams


@pytest.fixture
def table():
    """1,000 images of 500 patients; bacteria in groups of one to seven."""
    rng = np.random.default_rng(0)
    rows = []
    for kind, label, patients in (("bacteria", 1, 120), ("virus", 1, 150), ("normal", 0, 230)):
        for patient in range(patients):
            for image in range(int(rng.integers(1, 8)) if kind == "bacteria" else 1 + patient % 2):
                place = "test" if patient % 8 == 0 else "train"
                rows.append([f"{kind}{patient:03d}_{image}", place, label, kind, f"{kind}-{patient}"])
    table = pd.DataFrame(rows, columns=["image_id", "source_split", "label", "kind", "group_id"])
    return table.assign(pixel_hash=table.image_id)


def test_every_image_once_and_test_untouched(table):
    split = split_manifest(table, SplitParams())
    assert sorted(split.image_id) == sorted(table.image_id)
    assert set(split.image_id[split.split == "test"]) == set(table.image_id[table.source_split == "test"])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.4])
def test_groups_disjoint_ratio_and_size_kept(table, seed, fraction):
    split = split_manifest(table, SplitParams(validation_fraction=fraction, seed=seed))
    assert split.groupby("group_id").split.nunique().max() == 1
    pool = split[split.split != "test"]
    shares = pool.groupby("kind").split.apply(lambda s: (s == "val").mean())
    assert (shares - fraction).abs().max() < 0.02
    assert abs(pool.label[pool.split == "val"].mean() - pool.label.mean()) < 0.02


def test_same_seed_same_split_whatever_the_order_of_rows(table):
    one = split_manifest(table, SplitParams(seed=7))
    other = split_manifest(table.sample(frac=1, random_state=3), SplitParams(seed=7))
    pd.testing.assert_frame_equal(one, other)
    assert not one.equals(split_manifest(table, SplitParams(seed=8)))


def test_literal_groups_of_one_seed(table):
    """A change of the hashing would give everybody other splits under the same seed; it must not go unseen."""
    split = split_manifest(table, SplitParams(seed=1))
    chosen = sorted(split.group_id[split.split == "val"].unique())
    assert chosen[:3] == ["bacteria-103", "bacteria-105", "bacteria-108"]


def test_a_giant_group_is_seen(table):
    in_pool = (table.kind == "bacteria") & (table.source_split == "train")
    wrong = table.assign(group_id=table.group_id.where(~in_pool, "all-bacteria"))
    with pytest.raises(SplitError, match=r"Largest groups: all-bacteria \(\d+ images\)"):
        split_manifest(wrong, SplitParams())


def test_a_group_in_train_and_test_is_refused(table):
    leaking = table.assign(group_id=table.group_id.replace({"normal-0": "normal-1"}))
    with pytest.raises(SplitError, match=r"1 group\(s\) stand in more than one split: normal-1"):
        split_manifest(leaking, SplitParams())


def test_too_few_patients_for_a_validation_set(table):
    few = table[(table.source_split == "test") | table.group_id.isin(["normal-1", "virus-1", "bacteria-1"])]
    with pytest.raises(SplitError, match="the val split holds no images"):
        split_manifest(few, SplitParams(validation_fraction=0.1))


def test_check_counts_points(table):
    split = split_manifest(table, SplitParams())
    check_split(split, 2)
    skewed = split[~((split.split == "val") & (split.label == 0) & (split.image_id.str[-1] == "0"))]
    with pytest.raises(SplitError, match=r"pneumonia is [\d.]+% of validation but [\d.]+% of the training pool"):
        check_split(skewed, 2)


def test_groups_that_share_an_image_go_the_same_way(table):
    """One hundred children stand twice, under two numbers: a copy in training would tell what validation asks."""
    pool = table[(table.kind == "virus") & (table.source_split == "train")].drop_duplicates("group_id")
    pairs = dict(zip(pool.group_id[:50], pool.group_id[50:100], strict=True))
    twin = pool.set_index("group_id").pixel_hash
    tied = table.copy()
    for group, other in pairs.items():
        tied.loc[tied.image_id == pool.set_index("group_id").image_id[other], "pixel_hash"] = twin[group]
    assert tied.pixel_hash.duplicated().sum() == 50
    sides = split_manifest(tied, SplitParams()).drop_duplicates("group_id").set_index("group_id").split
    assert all(sides[one] == sides[other] for one, other in pairs.items())
    apart = split_manifest(table, SplitParams()).drop_duplicates("group_id").set_index("group_id").split
    assert any(apart[one] != apart[other] for one, other in pairs.items())


def test_the_published_validation_set_is_kept_or_refused(table):
    published = table.assign(source_split=table.source_split.where(~table.group_id.str.endswith("3"), "val"))
    split = split_manifest(published, SplitParams(validation="as_published", ratio_tolerance_points=20.0))
    assert set(split.image_id[split.split == "val"]) == set(published.image_id[published.source_split == "val"])
    leaking = published.copy()
    several = published[published.source_split == "val"].groupby("group_id").head(1).index
    leaking.loc[several, "source_split"] = "train"
    with pytest.raises(SplitError, match="stand in more than one split"):
        split_manifest(leaking, SplitParams(validation="as_published", ratio_tolerance_points=20.0))
