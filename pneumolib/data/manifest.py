"""Which images are there? One row an image, each file opened and decoded once, none skipped in silence.

Contract: `Manifest.table` is sorted by `image_id` and has the columns of `COLUMNS`; `label` 1 is pneumonia, 0 normal;
`path` is relative to `Manifest.root`. Files that cannot be used are listed in `Manifest.problems` with the reason.

What a file says besides its pixels: `mode` and `quantisation_sum` (a JPEG's luma table, 0 for others). What the pixels
say: `mean_intensity` and `sd_intensity` of the grey image, 0 to 255, and `pixel_hash`, equal for equal grey values at
equal size, whatever the file's format.
"""

import contextlib
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from pneumolib.data.decode import LIMITS, check_not_blank, decode, read_file
from pneumolib.data.layout import CLASSES, SPLITS, bar, is_drawn
from pneumolib.data.sources import list_source
from pneumolib.data.tables import first_of
from pneumolib.errors import DataError, ImageFileError
from pneumolib.params import DataParams
from pneumolib.project import in_root, write_whole
from pneumolib.provenance import text_digest
from pneumolib.text import printable

COLUMNS = [
    "image_id", "path", "label", "kind", "group_id", "source_split", "site", "width_px", "height_px", "mode", "bytes",
    "sha256", "quantisation_sum", "mean_intensity", "sd_intensity", "pixel_hash",
]  # fmt: skip
_CACHE_VERSION = 5  # raise it when the meaning of a cached column changes


@dataclass(frozen=True)
class Manifest:
    """The images of one data folder.

    Attributes:
        table: one row an image, columns `COLUMNS` and, as text, further ones of a table of paths; sorted by `image_id`.
        problems: what was left out; columns `path`, `reason`, and `files`, how many: of a whole folder all, of a second copy none.
        root: the folder that `path` is relative to.
        synthetic: whether the images were drawn by `data.synthetic`.
        limits: `data.max_megapixels` and `data.max_file_mb`, for whoever reads the files again.
    """

    table: pd.DataFrame
    problems: pd.DataFrame
    root: Path
    synthetic: bool
    limits: DataParams = LIMITS

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when an image's bytes, path, label, kind, group, split, site or further columns do."""
        columns = ["path", "label", "kind", "group_id", "source_split", "sha256"]
        columns += [*(["site"] if self.table.site.any() else []), *further_columns(self.table)]
        rows = self.table[columns].to_numpy().tolist()
        return text_digest(json.dumps(rows))

    def counts(self) -> pd.DataFrame:
        """Images and groups for each source split and kind, for people to read."""
        grouped = self.table.groupby(["source_split", "kind"], sort=True)
        return grouped.agg(images=("image_id", "size"), groups=("group_id", "nunique")).reset_index()


def further_columns(table: pd.DataFrame) -> list[str]:
    """Columns that a table of paths had and this library does not use, such as `view` and `age_years`."""
    return [name for name in table if name not in COLUMNS]


def read_manifest(params: DataParams, cache_dir: Path | None = None) -> Manifest:
    """List, open and describe every image of the data folder that `params` names.

    Files whose size and time are unchanged since the last call are taken from a cache. The others are read whole,
    hashed and decoded: a truncated file is found here and not in the middle of a training.

    Args:
        params: the source, see `data.sources`. A synthetic one is drawn and an archive unpacked where that is missing.
        cache_dir: of the cache; `.cache/manifest` of the project by default.
    Raises:
        DataError: data that is not there or not of the source's form, a split without usable images, or images whose
            patient cannot be told.
    """
    root, images, strangers = list_source(params)
    described = _describe_all(root, images, cache_dir or in_root(".cache/manifest"), params)
    # Sources of one hospital name none.
    table = pd.DataFrame([{"site": ""} | item | fact for item, fact in described if "reason" not in fact])
    table = table.reindex(columns=[*COLUMNS, *further_columns(table)])
    broken = [{"path": item["path"]} | fact for item, fact in described if "reason" in fact]
    problems = pd.DataFrame(strangers + broken, columns=["path", "reason", "files"])
    problems = problems.assign(path=problems.path.map(printable), files=problems.files.fillna(1).astype(int))
    problems = problems.sort_values("path", ignore_index=True)
    lines = _by_reason(problems)
    have = set(zip(table.source_split, table.label, strict=True))
    splits = sorted({image["source_split"] for image in images}) or SPLITS
    if empty := [f"{s}/{name}" for s in splits for name, label in CLASSES.items() if (s, label) not in have]:
        raise DataError(
            f"{root}: no usable image in {', '.join(empty)} (JPEG, PNG and DICOM can be read). "
            + "\n".join(["Files left out:", *lines[:5]] if lines else ["No file was left out."])
        )
    if lines:  # on stderr, so that it shows in the terminal, in the notebook and in the log
        head = f"LEFT OUT: {problems.files.sum()} file(s), {len(table)} images remain:"
        print(head, *lines, sep="\n", file=sys.stderr)
    table = table.sort_values("image_id", ignore_index=True)
    return Manifest(table, problems, root, is_drawn(root), params)


def _by_reason(problems: pd.DataFrame) -> list[str]:
    """A line for each reason, with the first few names."""
    lines = []
    for reason, rows in problems.groupby("reason", sort=False):
        count = f"{rows.files.sum()} file(s), " if rows.files.sum() else ""
        lines.append(f"  {count}{first_of(rows.path.tolist(), 5)}: {reason}")
    return lines


def _describe_all(root: Path, images: list[dict], cache_dir: Path, limits: DataParams) -> list[tuple[dict, dict]]:
    """The images and what `describe_file` says of each, from the cache where size and time are unchanged."""
    key = f"{_CACHE_VERSION} {limits.max_megapixels} {limits.max_file_mb} {root.resolve()}"
    file = cache_dir / f"{text_digest(key)}.json"
    cached = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    # Size and time; nothing for a dangling link, which is never taken from the cache.
    stamps = dict.fromkeys(item["path"] for item in images)
    for path in stamps:
        with contextlib.suppress(OSError):
            stat = os.stat(root / path)
            stamps[path] = [stat.st_size, stat.st_mtime_ns]
    known = {p: cached[p]["fact"] for p, stamp in stamps.items() if stamp and cached.get(p, {}).get("stamp") == stamp}
    todo = [path for path in stamps if path not in known]
    # Reading, hashing and decoding all release the interpreter's lock, so threads are enough.
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        facts = pool.map(lambda path: describe_file(root / path, limits), todo)
        known |= zip(todo, bar(facts, len(todo), "reading images"), strict=True)
    if todo:  # faults are not kept: permissions change, and a decoder is installed, while the file stays as it is
        kept = {path: {"stamp": stamps[path], "fact": fact} for path, fact in known.items() if "reason" not in fact}
        write_whole(file, json.dumps(kept))
    return [(item, known[item["path"]]) for item in images]


def describe_file(path: Path, limits: DataParams = LIMITS) -> dict:
    """The columns from `width_px` on for a file that decodes to its end, or the `reason` why not."""
    try:
        raw = read_file(path, limits)
        seen = decode(raw, limits=limits)
        check_not_blank(seen.image)
    except ImageFileError as fault:
        return {"reason": str(fault)}
    except OSError as fault:
        return {"reason": f"cannot be read: {fault.strerror}"}
    facts = dict(vars(seen))
    grey = np.asarray(facts.pop("image").convert("L"))
    shape = f"{seen.width_px} {seen.height_px} ".encode()
    facts["bytes"], facts["sha256"] = len(raw), hashlib.sha256(raw).hexdigest()
    facts["mean_intensity"], facts["sd_intensity"] = round(float(grey.mean()), 3), round(float(grey.std()), 3)
    return facts | {"pixel_hash": hashlib.sha256(shape + grey.tobytes()).hexdigest()[:16]}
