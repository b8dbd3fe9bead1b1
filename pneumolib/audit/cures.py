"""Do the cures work? The file facts of each image after a cure, and what a classifier still reaches with them.

A cure is a parameter of `image` that every run may set. It is applied to each file at its own size, and the facts are
taken of what comes out: width and height of what is left, bytes and quantisation of that saved anew (or the
original's, whose traces the pixels still carry), mean and SD of the grey values. The last rows are about what the network
gets: all images of one size, saved at one quality, so that only compressibility and grey values can differ.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from PIL import Image

from pneumolib.audit.findings import Finding
from pneumolib.audit.shortcuts import Score, grade, judge_shortcut
from pneumolib.data.decode import decode
from pneumolib.data.facts import metadata_features
from pneumolib.data.layout import bar
from pneumolib.data.manifest import Manifest
from pneumolib.data.pixels import as_jpeg, load_image, prepare
from pneumolib.evaluation.comparison import compare_auroc
from pneumolib.params import AuditParams, ImageParams, RunParams

BEFORE, ALL = "none: the files as they are", "all three, with fit: crop"
_LEFT = {
    "strong": ("warning", "Very much is left: more than four of five pairs of images are still told apart"),
    "clear": ("warning", "Much is left: a network can learn it"),
    "weak": ("note", "What is left is more than chance, but little"),
    "unclear": ("note", "The interval is too wide to say whether anything is left"),
    "none": ("ok", "Nothing is left that can be shown"),
    "turned": ("note", "What is left lies below chance: it holds in some groups and is turned round in others"),
}


def cure_table(manifest: Manifest, split: pd.DataFrame, params: RunParams) -> pd.DataFrame:
    """AUROC of the metadata-only classifier before and after each cure.

    Args:
        manifest, split: the images; at most `audit.mitigation_images` of them are prepared anew, whole groups of each class
            from the training pool and from test alike.
        params: `image`, `audit`, `evaluation` and `split.seed` are used.
    Returns:
        one row a cure: `cure, seen, images, cv, cv_low, cv_high, test, test_low, test_high, change, change_low,
        change_high`; `seen` is `file` or `network`; `change` is of the cross-validated AUROC from the first row of the
        same `seen`, paired on the same resamples. NaN where nothing can be computed.
    """
    chosen = _sample(split, params.audit.mitigation_images)
    files = manifest.table[manifest.table.image_id.isin(chosen.image_id)]
    tables = {("file", BEFORE): files}
    # Decoded files are not kept from one cure to the next: a thousand originals would take a gigabyte.
    for seen, ways in (("file", _cures(params.image, params.audit)), ("network", _inputs(params.image, params.audit))):
        for name, image in ways.items():
            tables[seen, name] = _facts_of(files, manifest, image, seen, params.audit.mitigation_quality, name)
    found = {
        key: judge_shortcut(metadata_features(t), chosen, params.evaluation, params.split.seed, params.audit.folds)
        for key, t in tables.items()
    }
    rows = []
    for seen in ("file", "network"):
        of_these = {name: shortcut for (where, name), shortcut in found.items() if where == seen}
        changes = _changes({name: s.predictions for name, s in of_these.items()}, params)
        for name, shortcut in of_these.items():
            row = {"cure": name, "seen": seen, "images": len(files), **_ends("cv", shortcut.cv)}
            rows.append(row | _ends("test", shortcut.test) | changes.get(name, {}))
    numbers = [f"{part}{end}" for part in ("cv", "test", "change") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["cure", "seen", "images", *numbers]).astype(dict.fromkeys(numbers, float))


def _ends(name: str, score: Score) -> dict[str, float | None]:
    return {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}


def _changes(predictions: dict[str, pd.DataFrame], params: RunParams) -> dict[str, dict[str, float]]:
    """Paired differences of the cross-validated AUROC from the first; empty where nothing was cross-validated."""
    if any("pool" not in set(table.split) for table in predictions.values()):
        return {}
    compared = compare_auroc(predictions, "pool", next(iter(predictions)), params.evaluation, params.split.seed)
    renamed = compared.rename(columns=lambda name: name.replace("difference", "change")).set_index("name")
    return renamed[["change", "change_low", "change_high"]].to_dict("index")


def _cures(image: ImageParams, audit: AuditParams) -> dict[str, ImageParams]:
    plain, values = without_cures(image), _all_three(audit)
    single = [("fit", "pad"), *values.items()]
    ways = {f"{name}: {value}": plain.model_copy(update={name: value}) for name, value in single}
    return ways | {ALL: plain.model_copy(update=values)}


def _all_three(audit: AuditParams) -> dict[str, str | int | float]:
    return {"fit": "crop", "reencode_quality": audit.mitigation_quality, "crop_border": audit.mitigation_crop_border}


def _inputs(image: ImageParams, audit: AuditParams) -> dict[str, ImageParams]:
    """What the network gets: without a cure, with this study's own parameters where these differ, with all three."""
    plain = without_cures(image)
    size = f"at {image.size_px} x {image.size_px} px"
    ways = {f"{size}, no cure": plain}
    if image != plain:
        ways[f"{size}, this study's settings"] = image
    return ways | {f"{size}, all three": plain.model_copy(update=_all_three(audit))}


def without_cures(image: ImageParams) -> ImageParams:
    """The whole picture, stretched, neither saved anew nor equalised, at the size and with the channels of `image`."""
    return ImageParams(size_px=image.size_px, channels=image.channels)


def _sample(split: pd.DataFrame, at_most: int) -> pd.DataFrame:
    """Whole groups in the order of a hash, the same share of every part and class, no more than `at_most` images."""
    share, parts = min(1.0, at_most / len(split)), []
    for _, rows in split.groupby([split.split == "test", "label"]):
        order = rows.group_id.map(lambda group: hashlib.sha256(str(group).encode()).hexdigest())
        rows = rows.iloc[np.argsort(order.to_numpy(), kind="stable")]
        sizes = rows.groupby("group_id", sort=False).size().cumsum()
        parts.append(rows[rows.group_id.isin(sizes.index[sizes <= share * len(rows) + 1e-9])])
    return pd.concat(parts, ignore_index=True)


def _facts_of(
    files: pd.DataFrame, manifest: Manifest, image: ImageParams, seen: str, quality: int, name: str
) -> pd.DataFrame:
    """`files` with the facts of the prepared images in place of their own."""

    def facts(row) -> dict:
        raw = (manifest.root / row.path).read_bytes()
        return _at_network(raw, image, quality) if seen == "network" else _at_own_size(raw, row, image)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        rows = list(bar(pool.map(facts, files.itertuples()), len(files), f"trying {name}"))
    return files.drop(columns=list(rows[0])).assign(**pd.DataFrame(rows, index=files.index))


def _at_own_size(raw: bytes, row, params: ImageParams) -> dict:
    """The mode stays the file's: turning colour into grey is no cure of these."""
    prepared = prepare(decode(raw, grey=params.channels == 1).image, params)
    n_bytes = row.bytes * (prepared.width * prepared.height) / (row.width_px * row.height_px)
    quantisation = row.quantisation_sum
    if params.reencode_quality is not None:
        jpeg = as_jpeg(prepared, params.reencode_quality)
        n_bytes, quantisation = len(jpeg), decode(jpeg).quantisation_sum
    return _facts(prepared, row.mode, n_bytes, quantisation)


def _at_network(raw: bytes, params: ImageParams, quality: int) -> dict:
    image = Image.fromarray(load_image(raw, params).squeeze())
    return _facts(image, image.mode, len(as_jpeg(image, quality)), 0)


def _facts(image: Image.Image, mode: str, n_bytes: float, quantisation: int) -> dict:
    grey = np.asarray(image.convert("L"))
    return {
        "width_px": image.width, "height_px": image.height, "mode": mode, "bytes": n_bytes,
        "quantisation_sum": quantisation, "mean_intensity": grey.mean(), "sd_intensity": grey.std(),
    }  # fmt: skip


def cure_findings(table: pd.DataFrame) -> list[Finding]:
    """`metadata_after_cures`, of the files, and `metadata_at_network`, of what the network gets: before and after all
    three cures, cross-validated; `metadata_at_study` for the study's own settings where these differ from none.
    """
    files, network = (table[table.seen == seen].set_index("cure") for seen in ("file", "network"))
    size = network.index[0].split(",")[0]
    three = "all three cures (one JPEG quality, borders cut, a square of the middle)"
    found = [
        _finding("metadata_after_cures", f"The files themselves: with {three}", files.loc[BEFORE], files.loc[ALL]),
        _finding("metadata_at_network", f"What a network gets {size}: with {three}", network.iloc[0], network.iloc[-1]),
    ]
    if len(network) > 2:
        what = f"What a network gets {size}: with this study's own image settings"
        found.append(_finding("metadata_at_study", what, network.iloc[0], network.iloc[1]))
    return found


def _finding(name: str, what: str, before: pd.Series, after: pd.Series) -> Finding:
    old, new, change = (
        Score(*(None if np.isnan(row[f"{part}{end}"]) else row[f"{part}{end}"] for end in ("", "_low", "_high")))
        for row, part in ((before, "cv"), (after, "cv"), (after, "change"))
    )
    if old.value is None or new.value is None:
        return Finding(name, "note", None, f"{what}, nothing can be computed.")
    verdict, left = _LEFT[grade(new)]
    moved = "No change is shown"
    if change.high is not None and change.high < 0:
        moved = "That takes part of it away"
    elif change.low is not None and change.low > 0:
        verdict, moved = "warning", "That makes it worse: look at each row before setting one"
    by = "" if change.low is None else f", by {change.value:+.3f} ({change.low:+.3f} to {change.high:+.3f})"
    sentence = f"{what}, the cross-validated AUROC of file facts goes from {old} to {new}{by}. {moved}. {left}."
    return Finding(name, verdict, new.value, sentence, new.low, new.high)
