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

from pneumolib.audit.features import metadata_features
from pneumolib.audit.findings import Finding
from pneumolib.audit.shortcuts import Score, grade, judge_shortcut
from pneumolib.data.decoding import decode
from pneumolib.data.images import as_jpeg, load_image, prepare
from pneumolib.data.manifest import Manifest
from pneumolib.data.progress import bar
from pneumolib.params import AuditParams, ImageParams, RunParams

BEFORE, ALL = "none: the files as they are", "all three, with fit: crop"
_LEFT = {
    "strong": ("warning", "What is left is near to the task itself"),
    "clear": ("warning", "A network can learn what is left"),
    "weak": ("note", "What is left is more than chance, but little"),
    "unclear": ("note", "The interval is too wide to say whether anything is left"),
    "none": ("ok", "Nothing is left that can be shown"),
    "turned": ("note", "What is left lies below chance: it holds in some groups and is turned round in others"),
}


def cure_table(manifest: Manifest, split: pd.DataFrame, params: RunParams) -> pd.DataFrame:
    """AUROC of the metadata-only classifier before and after each cure.

    Args:
        manifest, split: the images; at most `audit.cure_images` of them are prepared anew, whole groups of each class
            from the training pool and from test alike.
        params: `image`, `audit`, `evaluation` and `split.seed` are used.
    Returns:
        one row a cure: `cure, seen, images, cv, cv_low, cv_high, test, test_low, test_high`; `seen` is `file` or
        `network`, values are NaN where nothing can be computed. The first row is `BEFORE`, on the same images.
    """
    chosen = _sample(split, params.audit.cure_images)
    files = manifest.table[manifest.table.image_id.isin(chosen.image_id)]
    tables = {("file", BEFORE): files}
    # Decoded files are not kept from one cure to the next: a thousand originals would take a gigabyte.
    for seen, ways in (("file", _cures(params.image, params.audit)), ("network", _inputs(params.image, params.audit))):
        for name, image in ways.items():
            tables[seen, name] = _facts_of(files, manifest, image, seen, params.audit.cure_quality, name)
    rows = []
    for (seen, name), table in tables.items():
        found = judge_shortcut(
            metadata_features(table), chosen, params.evaluation, params.split.seed, folds=params.audit.folds
        )
        row = {"cure": name, "seen": seen, "images": len(table)}
        for part, score in (("cv", found.cv), ("test", found.test)):
            row |= {part: score.value, f"{part}_low": score.low, f"{part}_high": score.high}
        rows.append(row)
    numbers = [f"{part}{end}" for part in ("cv", "test") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows).astype(dict.fromkeys(numbers, float))


def _cures(image: ImageParams, audit: AuditParams) -> dict[str, ImageParams]:
    plain = ImageParams(size_px=image.size_px, channels=image.channels)
    values = {"reencode_quality": audit.cure_quality, "crop_border": audit.cure_crop_border}
    return {
        "fit: pad": plain.model_copy(update={"fit": "pad"}),
        "fit: crop": plain.model_copy(update={"fit": "crop"}),
        **{f"{name}: {value}": plain.model_copy(update={name: value}) for name, value in values.items()},
        ALL: plain.model_copy(update=values | {"fit": "crop"}),
    }


def _inputs(image: ImageParams, audit: AuditParams) -> dict[str, ImageParams]:
    """What the network gets: without a cure, with this study's own parameters where these name one, with all three."""
    none = {"fit": "stretch", "reencode_quality": None, "crop_border": 0.0}
    cured = {"fit": "crop", "reencode_quality": audit.cure_quality, "crop_border": audit.cure_crop_border}
    size = f"at {image.size_px} x {image.size_px} px"
    ways = {f"{size}, no cure": image.model_copy(update=none)}
    if image not in ways.values():
        ways[f"{size}, this study's settings"] = image
    return ways | {f"{size}, all three": image.model_copy(update=cured)}


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
    three cures, cross-validated.
    """
    files, network = (table[table.seen == seen].set_index("cure") for seen in ("file", "network"))
    return [
        _finding("metadata_after_cures", "The files themselves", files.loc[BEFORE], files.loc[ALL]),
        _finding("metadata_at_network", f"What the network gets {network.index[0].split(',')[0]}", network.iloc[0], network.iloc[-1]),
    ]  # fmt: skip


def _finding(name: str, what: str, before: pd.Series, after: pd.Series) -> Finding:
    old, new = (
        Score(*(None if np.isnan(row[c]) else row[c] for c in ("cv", "cv_low", "cv_high"))) for row in (before, after)
    )
    if old.value is None or new.value is None:
        return Finding(name, "note", None, f"{what}: the effect of the cures cannot be computed.")
    verdict, left = _LEFT[grade(new)]
    change = "That is no change that can be shown"
    if None not in (old.low, new.low) and new.high < old.low:
        change = "The cures take part of it away"
    elif None not in (old.low, new.low) and new.low > old.high:
        verdict, change = "warning", "The cures make it worse: look at each row before setting one"
    sentence = (
        f"{what}: with all three cures (one JPEG quality, borders cut, a square of the middle) the cross-validated AUROC "
        f"of file facts goes from {_words(old)} to {_words(new)}. {change}. {left}."
    )
    return Finding(name, verdict, new.value, sentence, new.low, new.high)


def _words(score: Score) -> str:
    return f"{score.value:.3f}" + ("" if score.low is None else f" ({score.low:.3f}-{score.high:.3f})")
