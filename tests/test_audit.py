"""The audit: what it must find in data made to hold it, and that it stays silent on data that do not."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import save_image
from pneumolib.audit.groups import duplicate_findings, find_duplicates, group_findings, sensitivity_list, shared_groups
from pneumolib.audit.shortcuts import (
    ALL,
    BEFORE,
    feature_table,
    judge_shortcut,
    mitigation_findings,
    mitigation_table,
    shortcut_findings,
)
from pneumolib.data.facts import border_table, mask_centre, metadata_features
from pneumolib.data.layout import identify
from pneumolib.data.manifest import describe_file, read_manifest
from pneumolib.data.pixels import ImageSet
from pneumolib.data.split import split_manifest
from pneumolib.params import EvaluationParams, check
from pneumolib.reporting.words import as_checks

PARAMS = EvaluationParams(resamples=100)


@pytest.fixture(scope="module")
def table():
    """240 images of 120 patients, every fifth patient in test; label and file facts have nothing to do with each other."""
    rng, n = np.random.default_rng(0), 240
    patient = np.arange(n) // 2
    return pd.DataFrame({
        "image_id": [f"i{i:03d}" for i in range(n)], "label": patient % 2, "kind": np.where(patient % 2, "virus", "normal"),
        "group_id": [f"{'virus' if p % 2 else 'IM'}-{p}" for p in patient],
        "source_split": np.where(patient % 5 == 0, "test", "train"),
        "width_px": rng.integers(800, 2000, n), "height_px": rng.integers(800, 1600, n),
        "mode": np.where(rng.random(n) < 0.1, "RGB", "L"), "bytes": rng.integers(50_000, 500_000, n),
        "quantisation_sum": rng.choice([330, 600, 1858], n), "mean_intensity": rng.normal(120, 15, n),
        "sd_intensity": rng.normal(55, 6, n),
    })  # fmt: skip


def split_of(table) -> pd.DataFrame:
    """The source's own folders as the split."""
    return table[["image_id", "label", "kind", "group_id"]].assign(split=table.source_split)


def judge(table, **options):
    return judge_shortcut(metadata_features(table), split_of(table), PARAMS, seed=1, **options)


def said(finding) -> str:
    """What `result.json` and the page say of it."""
    return as_checks([finding])[finding.name]["sentence"]


def alone(table) -> pd.DataFrame:
    return feature_table(metadata_features(table), split_of(table), PARAMS, seed=1).set_index("feature")


@pytest.fixture
def named():
    """Numbers 1 and 2 of the archive's series, on both sides; 9 nowhere else."""
    groups = ["bacteria-1", "bacteria-1", "IM-2", "virus-9", "virus-1", "virus-1", "NORMAL2-IM-2", "IM-7"]
    kinds = [g.split("-")[0] if g[0] in "bv" else "normal" for g in groups]
    places = ["train"] * 3 + ["val"] + ["test"] * 4
    ids = [f"i{i}" for i in range(8)]
    return pd.DataFrame({"image_id": ids, "kind": kinds, "group_id": groups, "source_split": places, "label": 1})


def test_only_keys_that_drop_the_series_share_groups(named):
    shared = shared_groups(named)
    assert shared.shared.tolist() == [0, 1, 2]
    assert shared.test_images.tolist() == [0, 2, 3]
    assert shared.groups.tolist() == [6, 5, 4]
    left_out = sensitivity_list(named).set_index("image_id")
    assert left_out.merged_bacteria_virus.to_dict() == {"i4": True, "i5": True, "i6": False}
    assert left_out.merged_all.all()


def test_group_findings_count_from_the_table(named):
    findings = {f.name: f for f in group_findings(named, split_of(named))}
    assert [f.verdict for f in findings.values()] == ["ok", "note", "note", "ok"]
    assert "share 2 groups (3 test images). In 2 of the 2 the two sides" in said(findings["groups_merged_all"])
    crossing = named.assign(group_id=named.group_id.replace({"virus-1": "bacteria-1"}))
    findings = {f.name: f for f in group_findings(crossing, split_of(crossing))}
    assert (findings["groups_across_splits"].verdict, findings["groups_across_splits"].value) == ("error", 1)
    assert "In 1 of the 2 the two sides" in said(findings["groups_merged_all"])
    other = named.assign(group_id="patient " + named.group_id)  # ids with no number to merge
    assert [f.name for f in group_findings(other, split_of(other))] == ["groups_across_splits", "group_sizes"]
    assert sensitivity_list(other).columns.tolist() == ["image_id", "merged_bacteria_virus", "merged_all"]


def test_the_split_decides_and_may_leave_images_out(named):
    split = split_of(named)[lambda rows: rows.image_id != "i0"]
    split["split"] = split.split.where(split.image_id != "i1", "test")
    assert shared_groups(named, split).shared.tolist() == [0, 0, 1]
    assert group_findings(named, split)[0].value == 0  # the other image of bacteria-1 takes no part


def test_giant_and_lone_groups_are_pointed_out(table):
    assert group_findings(table, split_of(table))[-1].verdict == "ok"
    giant = table.assign(group_id=table.group_id.where(table.index >= 60, "virus-1"))
    finding = group_findings(giant, split_of(giant))[-1]
    assert (finding.verdict, finding.value) == ("warning", 60 / 2)
    assert "normal 2, virus 2; the largest, virus-1, holds 30." in said(finding)
    lone = table.assign(group_id=table.image_id)
    crossing, *_, sizes = group_findings(lone, split_of(lone))
    assert (crossing.verdict, sizes.verdict) == ("note", "note")


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.sampled_from(["bacteria", "virus", "IM", "NORMAL2-IM"]), st.integers(1, 4), st.booleans()),
                min_size=2, max_size=20))  # fmt: skip
def test_shared_groups_are_those_on_both_sides_under_any_split(images):
    """The wider a key, the more test images it excludes; each exclusion has its number in the training pool."""
    series, _, in_test = zip(*images, strict=True)
    table = pd.DataFrame({"image_id": [f"i{i:02d}" for i in range(len(images))], "kind": series, "label": 1})
    table = table.assign(group_id=[f"{s}-{n}" for s, n, _ in images],
                         source_split=np.where(in_test, "test", "train"))  # fmt: skip
    shared = shared_groups(table)
    pool, test = (set(table.group_id[table.source_split == part]) for part in ("train", "test"))
    assert shared.shared[0] == len(pool & test)
    assert group_findings(table, split_of(table))[0].value == len(pool & test)
    assert shared.test_images.is_monotonic_increasing
    assert shared.groups.is_monotonic_decreasing
    left_out = sensitivity_list(table)
    assert (left_out.merged_bacteria_virus <= left_out.merged_all).all()
    assert len(left_out) == shared.test_images[2]


@pytest.fixture
def described(tmp_path):
    rng = np.random.default_rng(0)
    one, other, alone = (rng.integers(0, 256, (24, 20)) for _ in range(3))
    save_image(tmp_path / "a.jpeg", one)
    (tmp_path / "a_again.jpeg").write_bytes((tmp_path / "a.jpeg").read_bytes())
    save_image(tmp_path / "b.png", other, compress_level=1)
    save_image(tmp_path / "b_colour.png", np.repeat(other[..., None], 3, axis=2))
    save_image(tmp_path / "c.png", alone)
    rows = [
        {"image_id": p.stem, "path": p.name, "group_id": p.name[0]} | describe_file(p)
        for p in sorted(tmp_path.iterdir())
    ]
    return pd.DataFrame(rows).assign(label=0, kind="normal", source_split="train")


def test_equal_bytes_and_equal_pixels(described):
    found = find_duplicates(described, split_of(described))
    assert found[["set", "how", "image_id"]].to_numpy().tolist() == [
        [1, "bytes", "a"], [1, "bytes", "a_again"], [2, "pixels", "b"], [2, "pixels", "b_colour"],
    ]  # fmt: skip
    again = found.assign(split=np.where(found.image_id == "a_again", "test", "train"))
    sentence = said(duplicate_findings(again)[1])
    assert sentence.startswith("1 set(s) of 2 files stand in more than one split: a = a_again.")


@settings(deadline=None, max_examples=10)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 1), st.sampled_from(["train", "test"])), max_size=12))
def test_sets_of_duplicates_are_the_images_of_equal_pixels(images):
    ids = [f"i{i:02d}" for i in range(len(images))]
    pixels, files, places = (list(column) for column in (zip(*images, strict=True) if images else ([], [], [])))
    names = pd.DataFrame(
        {"image_id": ids, "path": ids, "label": files, "kind": "x", "group_id": ids, "source_split": places}
    )
    table = names.assign(pixel_hash=[str(p) for p in pixels], sha256=[f"{p}-{f}" for p, f, _ in images])
    found = find_duplicates(table, split_of(table))
    assert found.columns.tolist() == ["set", "how", "image_id", "path", "label", "group_id", "split"]
    expected = [rows for rows in table.groupby("pixel_hash").image_id.apply(list) if len(rows) > 1]
    assert sorted(found.groupby("set").image_id.apply(list)) == sorted(expected)
    counts = found.groupby("set")[["split", "group_id", "label"]].nunique()
    assert ((found.groupby("set").how.first() == "pixels") == (counts.label > 1)).all()
    several = [int((counts[column] > 1).sum()) for column in counts]
    findings, verdicts = duplicate_findings(found), ("note", "error", "warning", "error")
    assert [finding.value for finding in findings] == [len(expected), *several]
    assert [f.verdict for f in findings] == [v if f.value else "ok" for v, f in zip(verdicts, findings, strict=True)]


def test_metadata_of_one_file(table):
    row, features = table.iloc[0], metadata_features(table).loc["i000"]
    assert features.log2_aspect == pytest.approx(np.log2(row.width_px / row.height_px))
    assert features.log2_bytes_per_px == pytest.approx(np.log2(row.bytes / row.width_px / row.height_px))
    assert set(metadata_features(table).mode_RGB) == {0, 1}
    some = metadata_features(table.assign(quantisation_sum=np.where(np.arange(240) < 120, 1024, 0)))
    assert set(some.log2_quantisation_sum) == {10}  # a file without a table is told by `is_jpeg` alone
    assert some.is_jpeg.sum() == 120


def test_a_label_in_the_quantisation_is_found(table):
    coded = table.assign(quantisation_sum=np.where(table.label, 1858, 330))
    shortcut = judge(coded)
    assert min(shortcut.cv.low, shortcut.test.low) > 0.95
    first = shortcut.coefficients.iloc[0]
    assert (first.feature, first.in_words) == ("log2_quantisation_sum", "coarser JPEG quantisation → pneumonia")
    assert first.odds_ratio == pytest.approx(np.exp(first.coefficient))
    assert alone(coded).iloc[0][["in_words", "pool"]].tolist() == [first.in_words, 1]
    findings = shortcut_findings("metadata_only", "file facts", shortcut)
    assert {f.name: f.verdict for f in findings} == dict.fromkeys(["metadata_only_cv", "metadata_only_test"], "warning")
    assert "most weight: coarser JPEG quantisation → pneumonia" in said(findings[0])
    assert f"AUROC of {shortcut.cv.value:.3f} ({shortcut.cv.low:.3f} to {shortcut.cv.high:.3f})" in said(findings[0])
    fewer = table.assign(bytes=table.width_px * table.height_px / np.where(table.label, 16, 4))
    assert judge(fewer).coefficients.in_words[0] == "more bytes per pixel → normal"


def test_a_shortcut_turned_round_on_test(table):
    in_test = table.source_split == "test"
    coded = table.assign(quantisation_sum=np.where((table.label == 1) ^ in_test, 1858, 330))
    assert alone(coded).iloc[0][["pool", "test", "test_high"]].tolist() == [1, 0, 0]
    finding = shortcut_findings("x", "file facts", judge(coded))[1]
    assert (finding.verdict, finding.high < 0.1) == ("warning", True)
    assert "points the other way" in said(finding)


def test_without_a_shortcut_the_interval_covers_a_half_whatever_the_order_of_rows(table):
    shortcut, again = judge(table), judge(table.sample(frac=1, random_state=3))
    for score, same in ((shortcut.cv, again.cv), (shortcut.test, again.test)):
        assert score.low < 0.5 < score.high
        assert score[:3] == pytest.approx(same[:3])
    assert {finding.verdict for finding in shortcut_findings("x", "file facts", shortcut)} <= {"ok", "note"}
    assert shortcut.predictions.split.value_counts().to_dict() == {"pool": 192, "test": 48}


def test_folds_keep_groups_whole():
    """Features that name the patient and nothing else: recognising patients must not pay."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), 6)
    values = rng.normal(size=(60, 80))[patient] + rng.normal(scale=0.01, size=(360, 80))
    ids = [f"i{i}" for i in range(360)]
    split = pd.DataFrame({"image_id": ids, "split": "train", "label": patient % 2, "kind": "x"})
    features = pd.DataFrame(values, index=ids)
    by_patient = judge_shortcut(features, split.assign(group_id=patient), PARAMS, seed=1)
    by_image = judge_shortcut(features, split.assign(group_id=ids), PARAMS, seed=1)
    assert by_image.cv.value > 0.99
    assert by_patient.cv.low < 0.5 < by_patient.cv.high


ONE_CLASS = "the training pool does not hold both classes"
FEW = "a class has fewer than two groups to resample"


@pytest.mark.parametrize(
    ("kept", "cv", "test", "in_cv", "in_test"),
    [
        (lambda t: t[t.source_split == "train"], "", "test does not hold both classes", True, False),
        (lambda t: t[t.label == 0], ONE_CLASS, ONE_CLASS, False, False),
        (lambda t: t[(t.label == 1) | t.group_id.isin(["IM-2", "IM-4", "IM-6", "IM-10"])],
         "normal has 3 group(s), fewer than the 5 folds", FEW, False, True),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_says_why(table, kept, cv, test, in_cv, in_test):
    shortcut = judge(kept(table))
    assert (shortcut.cv.reason, shortcut.test.reason) == (cv, test)
    assert (shortcut.cv.value >= 0, shortcut.test.value >= 0) == (in_cv, in_test)
    assert set(shortcut.predictions.split) == {name for name, judged in (("pool", in_cv), ("test", in_test)) if judged}
    finding = shortcut_findings("x", "file facts", shortcut)[1]
    assert finding.verdict == "note"
    assert f"not computable, because {test}" in said(finding)
    assert alone(kept(table)).test_low.isna().all()


def test_constant_features_are_listed_and_images_without_features_refused(table):
    flat = table.assign(mode="L", quantisation_sum=330)
    constant = judge(flat).coefficients.set_index("feature").loc[["mode_L", "log2_quantisation_sum"]]
    assert set(constant.in_words) == {"constant, tells nothing"}
    assert (constant.coefficient == 0).all()
    assert alone(flat).in_words["mode_L"] == "constant, tells nothing"
    assert alone(flat).loc["mode_L", ["pool", "test"]].isna().all()
    features, split = metadata_features(table), split_of(table)
    shortcut = judge_shortcut(features * 0 + 10.5, split, PARAMS, 1)
    assert shortcut.cv.reason == "all 9 features are constant on the training pool"
    with pytest.raises(KeyError, match="i003"):
        feature_table(features.drop("i003"), split, PARAMS, 1)


IDS = pd.DataFrame({"image_id": list("abc")})


@pytest.mark.parametrize(("shape", "fraction"), [((32, 32, 1), 0.125), ((45, 61, 1), 0.05), ((64, 50, 3), 0.3)])
def test_nothing_of_the_centre_reaches_a_feature(shape, fraction):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, *shape), dtype=np.uint8)
    in_frame = mask_centre(np.ones_like(pixels), fraction).astype(bool)
    other = np.where(in_frame, pixels, 255 - pixels)
    assert (pixels != other).any()
    np.testing.assert_array_equal(mask_centre(other, fraction), np.where(in_frame, pixels, 0))
    of_one, of_other = (border_table([ImageSet(IDS, images)], fraction) for images in (pixels, other))
    pd.testing.assert_frame_equal(of_one, of_other)


def test_a_label_in_the_border_is_found_and_one_in_the_centre_is_not(table):
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 110, (len(table), 40, 40, 1), dtype=np.uint8)
    for place, found in ((slice(0, 3), True), (slice(15, 25), False)):
        coded = pixels.copy()
        coded[:, place, 15:25] += (15 * table.label).to_numpy(np.uint8)[:, None, None, None]
        split = split_of(table)
        parts = [ImageSet(split[split.split == p], coded[split.split == p]) for p in ("test", "train")]
        features = border_table(parts)
        assert features.index.tolist() == [i for part in parts for i in part.table.image_id]
        shortcut = judge_shortcut(features, split, PARAMS, seed=1, l2=100)
        assert (shortcut.cv.low > 0.9, shortcut.test.low > 0.9) == (found, found)
        assert found or shortcut.cv.low < 0.5
        assert "most weight" not in said(shortcut_findings("border_only", "the border", shortcut)[0])


@pytest.mark.shared
def test_jpeg_quality_tells_the_original_training_images_apart(shared_data):
    root, rows = shared_data / "originals", []
    for path in sorted(root.glob("train/*/*.jpeg"))[::3]:
        kind, group = identify(path.parent.name, path.stem)
        place = {"image_id": path.stem, "kind": kind, "group_id": group, "source_split": "train"}
        rows.append(place | {"label": int(path.parent.name == "PNEUMONIA")} | describe_file(path))
    table = pd.DataFrame(rows)
    alone = feature_table(metadata_features(table), split_of(table), PARAMS, 1).set_index("feature")
    quality = alone.loc["log2_quantisation_sum"]
    assert quality.pool_low > 0.98
    assert quality.in_words == "coarser JPEG quantisation → pneumonia"
    shortcut = judge(table)
    assert shortcut.cv.low > 0.95
    assert shortcut.test.reason == "test does not hold both classes"


# --- mitigations


@pytest.fixture(scope="module")
def tell_tale(tmp_path_factory):
    """Even light from one side, as bright in all: normal was saved at a quality of 95 and wide, pneumonia at 60, square."""
    folder, rng = tmp_path_factory.mktemp("tell_tale"), np.random.default_rng(0)
    for n in range(1, 33):
        for name, width, quality in (
            (f"NORMAL/IM-{n:04d}-0001", 96, 95),
            (f"PNEUMONIA/person{n}_virus_{n}", 64, 60),
        ):
            scene = np.add.outer(np.linspace(0, 30 * rng.uniform(), 64), np.full(width, rng.uniform(80, 160)))
            save_image(folder / f"set/{'train' if n < 25 else 'test'}/{name}.jpeg", scene, quality=quality)
    params = check({
        "data": {"root": str(folder / "set"), "val_folder": "leave_out"}, "image": {"size_px": 32, "crop_border": 0.1},
        "split": {"validation_fraction": 0.2}, "evaluation": {"resamples": 100},
        "audit": {"mitigation_images": 1000, "mitigation_quality": 60, "folds": 3},
    })  # fmt: skip
    manifest = read_manifest(params.data, folder / "cache")
    return manifest, split_manifest(manifest.table, params.split), params


def test_mitigations_remove_quality_and_shape(tell_tale):
    manifest, split, params = tell_tale
    table = mitigation_table(manifest, split, params).set_index("mitigation")
    assert table.cv[BEFORE] == table.test[BEFORE] == 1.0
    assert table.cv["fit: crop"] == 1.0  # the quality still tells
    assert table.cv["reencode_quality: 60"] == 1.0  # the shape still tells
    assert (table.images == len(manifest.table)).all()
    assert table.index[0] == BEFORE
    of_network = ["no mitigation", "this study's settings", "all three"]
    assert list(table.index[-3:]) == [f"at 32 x 32 px, {what}" for what in of_network]
    assert table.seen.tolist() == ["file"] * 6 + ["network"] * 3
    # In these soft pictures nothing is left but chance.
    assert table.cv_low[ALL] < 0.5 < table.cv_high[ALL]
    files, network, study = mitigation_findings(table.reset_index())
    assert (files.value, network.value, study.value) == (table.cv[ALL], table.cv.iloc[-1], table.cv.iloc[-2])
    assert "from 1.000 (1.000 to 1.000) to" in said(files)
    assert table.change[ALL] == pytest.approx(table.cv[ALL] - 1)
    assert table.change_low[ALL] < table.change[ALL] < table.change_high[ALL] < 0


def test_a_sample_holds_whole_groups_and_both_classes_and_needs_no_test(tell_tale):
    manifest, split, params = tell_tale
    few = params.model_copy(update={"audit": params.audit.model_copy(update={"mitigation_images": 30})})
    table = mitigation_table(manifest, split[split.split != "test"], few)
    assert table.images.between(24, 30).all()
    assert table.cv.notna().all()
    assert table.test.isna().all()
    assert mitigation_findings(table)[0].value == table.cv[table.mitigation == ALL].item()


def scored(before, after, change):
    nothing = (np.nan,) * 3
    rows = [("none: the files as they are", "file", *before, *nothing), ("all three, with fit: crop", "file", *after, *change),
            ("at 64 x 64 px, no mitigation", "network", *before, *nothing),
            ("at 64 x 64 px, all three", "network", *after, *change)]  # fmt: skip
    ends = [f"{part}{end}" for part in ("cv", "change") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["mitigation", "seen", *ends])


@pytest.mark.parametrize(
    ("after", "change", "verdict", "words"),
    [
        ((0.75, 0.70, 0.80), (-0.20, -0.25, -0.15), "warning", "takes part of it away. Much is left"),
        ((0.51, 0.47, 0.55), (-0.44, -0.50, -0.40), "ok", "Nothing is left that can be shown"),
        ((0.51, 0.47, 0.55), (0.02, 0.01, 0.03), "warning", "makes it worse"),
        ((0.90, np.nan, np.nan), (-0.05, np.nan, np.nan), "note", "No change is shown. The interval is too wide"),
        ((np.nan, np.nan, np.nan), (np.nan, np.nan, np.nan), "note", "nothing can be computed"),
    ],
)
def test_the_verdict_on_mitigations_follows_the_numbers(after, change, verdict, words):
    for finding in mitigation_findings(scored((0.95, 0.92, 0.98), after, change)):
        assert finding.verdict == verdict
        assert words in said(finding)
        assert "nan" not in said(finding)
