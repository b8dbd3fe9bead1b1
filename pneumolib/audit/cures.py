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
from pneumolib.audit.shortcuts import WARNING_ABOVE, judge_shortcut
from pneumolib.data.decoding import decode
from pneumolib.data.images import as_jpeg, load_image, prepare
from pneumolib.data.manifest import Manifest
from pneumolib.data.progress import bar
from pneumolib.params import AuditParams, ImageParams, RunParams

BEFORE, ALL = "none: the files as they are", "all three, with fit: crop"


def cure_table(manifest: Manifest, split: pd.DataFrame, params: RunParams) -> pd.DataFrame:
    """AUROC of the metadata-only classifier before and after each cure.

    Args:
        manifest, split: the images; at most `audit.cure_images` of them are prepared anew, whole groups of each class
            from the training pool and from test alike.
        params: `image`, `audit`, `evaluation` and `split.seed` are used.
    Returns:
        one row a cure: `cure, images, cv, cv_low, cv_high, test, test_low, test_high`; NaN where nothing can be
        computed. The first row is `BEFORE`, on the same images.
    """
    chosen = _sample(split, params.audit.cure_images)
    files = manifest.table[manifest.table.image_id.isin(chosen.image_id)]
    # Decoded files are not kept: a thousand originals would take a gigabyte.
    tables = {BEFORE: files}
    for name, image in _cures(params.image, params.audit).items():
        tables[name] = _facts_of(files, manifest, image, at_network=False, quality=params.audit.cure_quality, name=name)
    for name, image in _settings(params.image, params.audit).items():
        tables[name] = _facts_of(files, manifest, image, at_network=True, quality=params.audit.cure_quality, name=name)
    rows = []
    for name, table in tables.items():
        found = judge_shortcut(
            metadata_features(table), chosen, params.evaluation, params.split.seed, folds=params.audit.folds
        )
        row = {"cure": name, "images": len(table)}
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


def _settings(image: ImageParams, audit: AuditParams) -> dict[str, ImageParams]:
    """What the network gets: with this study's parameters, and with all three cures."""
    cured = {"fit": "crop", "reencode_quality": audit.cure_quality, "crop_border": audit.cure_crop_border}
    size = f"{image.size_px} x {image.size_px} px"
    return {
        f"at {size}, this study's settings": image,
        f"at {size}, all three": image.model_copy(update=cured),
    }


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
    files: pd.DataFrame, manifest: Manifest, image: ImageParams, at_network: bool, quality: int, name: str
) -> pd.DataFrame:
    """`files` with the facts of the prepared images in place of their own."""

    def facts(row) -> dict:
        raw = (manifest.root / row.path).read_bytes()
        return _at_network(raw, image, quality) if at_network else _at_own_size(raw, row, image)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        rows = list(bar(pool.map(facts, files.itertuples()), len(files), f"trying {name}"))
    return files.drop(columns=list(rows[0])).assign(**pd.DataFrame(rows, index=files.index))


def _at_own_size(raw: bytes, row, params: ImageParams) -> dict:
    prepared = prepare(decode(raw, grey=params.channels == 1).image, params)
    if params.reencode_quality is not None:
        jpeg = as_jpeg(prepared, params.reencode_quality)
        return _facts(prepared, len(jpeg), decode(jpeg, at_least_px=1).quantisation_sum)
    return _facts(prepared, row.bytes * (prepared.width * prepared.height) / (row.width_px * row.height_px),
                  row.quantisation_sum)  # fmt: skip


def _at_network(raw: bytes, params: ImageParams, quality: int) -> dict:
    image = Image.fromarray(load_image(raw, params).squeeze())
    return _facts(image, len(as_jpeg(image, quality)), 0)


def _facts(image: Image.Image, n_bytes: float, quantisation: int) -> dict:
    grey = np.asarray(image.convert("L"))
    return {
        "width_px": image.width, "height_px": image.height, "mode": image.mode, "bytes": n_bytes,
        "quantisation_sum": quantisation, "mean_intensity": grey.mean(), "sd_intensity": grey.std(),
    }  # fmt: skip


def cure_findings(table: pd.DataFrame) -> list[Finding]:
    """`metadata_after_cures`: what file facts still tell after all three cures."""
    before, after = table.set_index("cure").loc[[BEFORE, ALL]].to_dict("records")
    network = "; ".join(f"{row.cure}, it is {row.cv:.3f}" for row in table.itertuples() if row.cure.startswith("at "))
    if np.isnan(after["cv"]) or np.isnan(before["cv"]):
        return [Finding("metadata_after_cures", "note", None, "The effect of the cures cannot be computed.")]
    limits = (None, None) if np.isnan(after["cv_low"]) else (after["cv_low"], after["cv_high"])
    left = limits[0] is not None and limits[0] > WARNING_ABOVE
    meaning = "What is left lies in size, grey values and how well an image compresses, which these cures do not touch" if left else (
        "The shortcut is not shown any more"
    )  # fmt: skip
    words = f"{after['cv']:.3f}" + ("" if limits[0] is None else f" ({limits[0]:.3f}-{limits[1]:.3f})")
    return [
        Finding(
            "metadata_after_cures", "warning" if left else "ok", after["cv"],
            f"With all three cures (one JPEG quality, borders cut, a square of the middle) the cross-validated AUROC of "
            f"file facts goes from {before['cv']:.3f} to {words}. For what the network gets {network}. {meaning}.", *limits,
        )
    ]  # fmt: skip
