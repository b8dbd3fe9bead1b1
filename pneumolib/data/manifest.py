"""Which images are there? One row an image, each file opened and decoded once, none skipped in silence.

Contract: `Manifest.table` is sorted by `image_id` and has the columns of `COLUMNS`; `label` 1 is pneumonia, 0 normal;
`path` is relative to `Manifest.root`. Files that cannot be used stand in `Manifest.problems` with the reason.
"""

import hashlib
import io
import json
import os
import re
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from pneumolib.data.progress import bar
from pneumolib.params import DataParams, in_root

COLUMNS = [
    "image_id", "path", "label", "kind", "group_id", "source_split", "width_px", "height_px", "mode", "bytes", "sha256",
]  # fmt: skip
CLASSES = {"NORMAL": 0, "PNEUMONIA": 1}
IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png"}
# Not data: files that operating systems leave behind. The archive's nested copies (`chest_xray/`, `__MACOSX/`) lie
# beside the split folders, where nothing looks for images.
IGNORED = re.compile(r"\.DS_Store|\._.*|__MACOSX|Thumbs\.db|desktop\.ini")
PATTERNS = {
    "PNEUMONIA": re.compile(r"person(?P<number>\d+)_(?P<series>bacteria|virus)_\d+(?:_\d+)?"),
    "NORMAL": re.compile(r"(?P<series>IM|NORMAL2-IM)-(?P<number>\d+)-\d+(?:-\d+)?"),
}
EXAMPLES = {
    "PNEUMONIA": "person<N>_<bacteria|virus>_<M>.jpeg",
    "NORMAL": "IM-<N>-<k>[-<j>].jpeg or NORMAL2-IM-<N>-<k>.jpeg",
}
_CACHE_VERSION = 1  # raise it when the meaning of a cached column changes


class ManifestError(ValueError):
    """A data folder that cannot be used; the message says what was looked for, where, and what to do."""


@dataclass(frozen=True)
class Manifest:
    """The images of one data folder.

    Attributes:
        table: one row an image, columns `COLUMNS`, sorted by `image_id`.
        problems: the files left out; columns `path`, `reason`.
        root: the folder that `path` is relative to.
        synthetic: whether the images were drawn by `data.synthetic`.
    """

    table: pd.DataFrame
    problems: pd.DataFrame
    root: Path
    synthetic: bool

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when an image's bytes, place or label do, and with nothing else."""
        rows = self.table[["path", "label", "sha256"]].itertuples(index=False)
        return hashlib.sha256("\n".join(f"{r.path} {r.label} {r.sha256}" for r in rows).encode()).hexdigest()[:16]

    def counts(self) -> pd.DataFrame:
        """Images and groups for each source split and kind, for people to read."""
        grouped = self.table.groupby(["source_split", "kind"], sort=True)
        return grouped.agg(images=("image_id", "size"), groups=("group_id", "nunique")).reset_index()


def read_manifest(params: DataParams, cache_dir: Path | None = None) -> Manifest:
    """List, open and describe every image of the data folder that `params` names.

    Files whose size and time are unchanged since the last call are taken from a cache; the others are read whole,
    hashed and decoded, so that a truncated file is found here and not in the middle of a training.

    Args:
        params: `source`, `root` and `val_folder`. A synthetic source is drawn first where it is missing.
        cache_dir: where the cache lies; `.cache/manifest` of the project by default.
    Raises:
        ManifestError: no such folder, a class folder missing, a split without usable images, or a file name that
            does not follow the archive's pattern (its patient cannot be told).
    """
    root = in_root(params.root)
    if params.source == "synthetic":
        # Imported here: drawing needs packages that studies of real images need not wait for.
        from pneumolib.data.synthetic import draw_dataset

        try:
            draw_dataset(root, params.n_images, params.drawing_seed)
        except FileExistsError as fault:
            raise ManifestError(f"data.root: {fault}. Name another folder for the drawn images") from None
    splits = ["train", "val", "test"] if params.val_folder == "join" else ["train", "test"]
    listing, strangers = _list_files(root, splits)
    cache = _Cache(root, cache_dir or in_root(".cache/manifest"))
    described = _describe_all(root, listing, cache)
    table = pd.DataFrame([row for row in described if "reason" not in row], columns=COLUMNS)
    problems = pd.DataFrame(strangers + [row for row in described if "reason" in row], columns=["path", "reason"])
    problems = problems.sort_values("path", ignore_index=True)
    _refuse_empty(table, problems, root, splits)
    _report(problems, len(table))
    table = table.sort_values("image_id", ignore_index=True)
    return Manifest(table, problems, root, (root / "synthetic.json").is_file())


def identify(class_name: str, stem: str) -> tuple[str, str] | None:
    """`(kind, group_id)` from a file name of the archive, or None when it follows no known pattern.

    The number restarts for each series, so the group key is (series, number): `person1_bacteria_2` belongs to
    `bacteria-1`, `IM-0115-0001` to `IM-115`. Keys that leave the series out report overlaps between train and test
    that are an artefact of the numbering.
    """
    match = PATTERNS[class_name].fullmatch(stem)
    if match is None:
        return None
    series = match["series"]
    return (series if class_name == "PNEUMONIA" else "normal"), f"{series}-{int(match['number'])}"


def _list_files(root: Path, splits: list[str]) -> tuple[list[dict], list[dict]]:
    """Candidate images (path, label, kind, group_id, source_split), and files that are no images by their name."""
    _require_folders(root, splits)
    images, strangers, unknown = [], [], []
    for split in splits:
        for class_name, label in CLASSES.items():
            for entry in sorted(os.scandir(root / split / class_name), key=lambda e: e.name):
                path = f"{split}/{class_name}/{entry.name}"
                stem, suffix = os.path.splitext(entry.name)
                if IGNORED.fullmatch(entry.name):
                    continue
                if entry.is_dir():
                    strangers.append({"path": path, "reason": "a folder inside a class folder"})
                elif suffix.lower() not in IMAGE_SUFFIXES:
                    strangers.append({"path": path, "reason": f"not an image file ({suffix or 'no'} ending)"})
                elif (identity := identify(class_name, stem)) is None:
                    unknown.append(path)
                else:
                    images.append({"image_id": f"{split}/{class_name}/{stem}", "path": path, "label": label,
                                   "kind": identity[0], "group_id": identity[1], "source_split": split})  # fmt: skip
    _refuse_unknown(unknown, root)
    _refuse_twins(images, root)
    return images, strangers


def _require_folders(root: Path, splits: list[str]) -> None:
    wanted = [root / split / name for split in splits for name in CLASSES]
    missing = [folder for folder in wanted if not folder.is_dir()]
    if not missing:
        return
    if not root.is_dir():
        raise ManifestError(
            f"data.root: {root} is not a folder. Unpack the Kaggle archive `chest-xray-pneumonia` there, or name "
            f"the folder that holds train/, val/ and test/: make report DATA=<folder>"
        )
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:12]
    nested = next((p.parent for p in sorted(root.glob("*/train")) if p.parent.name != "__MACOSX"), None)
    hint = f" Did you mean {nested}?" if nested else ""
    if all(root / "val" in folder.parents for folder in missing) and not (root / "val").is_dir():
        hint = " Where there is no val folder, set data.val_folder: leave_out."
    raise ManifestError(
        f"data.root: {root}: looked for {', '.join(f'{s}/{c}' for s in splits for c in CLASSES)}; missing: "
        f"{', '.join(str(folder.relative_to(root)) for folder in missing)}. Folders found there: "
        f"{', '.join(found) or 'none'}.{hint}"
    )


def _refuse_unknown(unknown: list[str], root: Path) -> None:
    if unknown:
        shown = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        raise ManifestError(
            f"{root}: {len(unknown)} file name(s) follow no known pattern, so their patient cannot be told and they "
            f"could leak between train and test: {shown}. Looked for {EXAMPLES['NORMAL']} in NORMAL and "
            f"{EXAMPLES['PNEUMONIA']} in PNEUMONIA. Rename the files or move them away."
        )


def _refuse_twins(images: list[dict], root: Path) -> None:
    ids = pd.Series([image["image_id"] for image in images], dtype=str)
    if (twins := sorted(ids[ids.duplicated()])) != []:
        raise ManifestError(f"{root}: files that differ in their ending only: {', '.join(twins[:10])}. Keep one each.")


def _refuse_empty(table: pd.DataFrame, problems: pd.DataFrame, root: Path, splits: list[str]) -> None:
    have = set(zip(table.source_split, table.label, strict=True))
    empty = [f"{s}/{name}" for s in splits for name, label in CLASSES.items() if (s, label) not in have]
    if empty:
        reasons = "; ".join(f"{p.path}: {p.reason}" for p in problems.head(5).itertuples())
        raise ManifestError(
            f"{root}: no usable image in {', '.join(empty)} (looked for {', '.join(sorted(IMAGE_SUFFIXES))}). "
            + (f"Left out there and elsewhere: {reasons}" if reasons else "The folders hold no images.")
        )


def _report(problems: pd.DataFrame, n_good: int) -> None:
    """Loudly: on stderr, so that it shows in the terminal, in the notebook and in the log."""
    if len(problems):
        lines = "\n".join(f"  {row.path}: {row.reason}" for row in problems.itertuples())
        print(f"LEFT OUT: {len(problems)} file(s), {n_good} images remain:\n{lines}", file=sys.stderr)


def _describe_all(root: Path, listing: list[dict], cache: "_Cache") -> list[dict]:
    known = [cache.get(item["path"]) for item in listing]
    todo = [item for item, hit in zip(listing, known, strict=True) if hit is None]
    # Reading, hashing and decoding all release the interpreter's lock, so threads are enough.
    # The filter is set around the pool: setting it inside threads would race.
    with warnings.catch_warnings(), ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        facts = pool.map(lambda item: describe_file(root / item["path"]), todo)
        fresh = dict(zip((item["path"] for item in todo), bar(facts, len(todo), "reading images"), strict=True))
    for path, fact in fresh.items():
        cache.put(path, fact)
    if fresh:
        cache.save(keep={item["path"] for item in listing})
    return [item | (hit or fresh[item["path"]]) for item, hit in zip(listing, known, strict=True)]


def describe_file(path: Path) -> dict:
    """`width_px, height_px, mode, bytes, sha256` of an image that decodes to its end, or the `reason` why not."""
    try:
        raw = path.read_bytes()
    except OSError as fault:
        return {"reason": f"cannot be read: {fault.strerror}"}
    if not raw:
        return {"reason": "empty file (0 bytes)"}
    try:
        with Image.open(io.BytesIO(raw)) as image:
            fact = {"width_px": image.width, "height_px": image.height, "mode": image.mode}
            image.draft(image.mode, (1, 1))  # an eighth of the pixels is enough to find the end of the file
            image.load()
    except Image.UnidentifiedImageError:
        return {"reason": f"not an image: begins with {raw[:8]!r}"}
    except Image.DecompressionBombWarning as fault:
        return {"reason": f"too many pixels: {fault}"}
    # Pillow's decoders raise these for broken files: OSError for truncated data, the others for broken structure.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as fault:
        return {"reason": f"does not decode: {fault}"}
    return fact | {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


class _Cache:
    """What `describe_file` found, by path, valid while the file's size and modification time stay the same."""

    def __init__(self, root: Path, folder: Path):
        key = hashlib.sha256(f"{_CACHE_VERSION} {root.resolve()}".encode()).hexdigest()[:16]
        self.root, self.file, self.rows = root, folder / f"{key}.json", {}
        if self.file.is_file():
            self.rows = json.loads(self.file.read_text(encoding="utf-8"))

    def _stamp(self, path: str) -> list[int] | None:
        try:
            stat = os.stat(self.root / path)
        except OSError:  # a dangling link, say: described every time, never cached
            return None
        return [stat.st_size, stat.st_mtime_ns]

    def get(self, path: str) -> dict | None:
        hit, stamp = self.rows.get(path), self._stamp(path)
        return hit["fact"] if hit and stamp and hit["stamp"] == stamp else None

    def put(self, path: str, fact: dict) -> None:
        self.rows[path] = {"stamp": self._stamp(path), "fact": fact}

    def save(self, keep: set[str]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({p: row for p, row in self.rows.items() if p in keep}), encoding="utf-8")
        os.replace(temporary, self.file)
