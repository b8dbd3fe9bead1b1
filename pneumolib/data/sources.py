"""Where the radiographs come from: each source gives the same listing, and nothing is decoded yet.

`kaggle_folder` reads `<split>/<class>/` with classes NORMAL and PNEUMONIA, or Normal and Opacity as in the revised
split; `csv` a table of paths; `tfrecord` and `npz` are unpacked once into the cache and read from there; `synthetic` is
drawn first, in the first layout or, as another hospital's, in the second.
"""

import os
from pathlib import Path

import pandas as pd

from pneumolib.data.layout import CLASS_NAMES, CLASSES, IGNORED, IMAGE_SUFFIXES, SPLITS, Listing, identify
from pneumolib.data.tables import list_csv, unpack_npz
from pneumolib.errors import DataError, PneumolibError
from pneumolib.params import DataParams
from pneumolib.project import in_root
from pneumolib.provenance import text_digest

UNPACKED = ".cache/unpacked"


def list_source(params: DataParams) -> Listing:
    """List the images that `params` names. Raises DataError for data that cannot be used."""
    root, join_val = in_root(params.root), params.val_folder == "join"
    try:
        # Imported where it is used, here and below: what draws or downloads need not be waited for by the other sources.
        if params.source == "synthetic":
            from pneumolib.data.synthetic import draw_dataset, draw_second_hospital

            draw = draw_second_hospital if params.hospital == 2 else draw_dataset
            root = draw(root, params.n_images, params.drawing_seed)
        if params.source == "tfrecord":
            from pneumolib.data.download import fetch_pairs
            from pneumolib.data.tfrecord import unpack_pairs

            key = text_digest(params.root)
            if "://" in params.root:
                root = fetch_pairs(params.root, in_root(f".cache/download/{key}"))
            root = unpack_pairs(root, in_root(f"{UNPACKED}/tfrecord-{key}"))
        if params.source == "npz":
            root = unpack_npz(root, in_root(UNPACKED))
    except (PneumolibError, OSError) as fault:
        raise DataError(f"data.root: {fault}") from None
    as_table = params.source in ("csv", "npz") or (params.source == "synthetic" and params.hospital == 2)
    return list_csv(root, join_val) if as_table else _list_folder(root, join_val)


def _list_folder(root: Path, join_val: bool) -> Listing:
    """`<split>/<class>/<file>`; nothing deeper, so links that lead in circles lead nowhere. A val folder may be missing,
    as in the TFRecord edition, which counts its images among train.
    """
    splits = [split for split in SPLITS if split != "val" or (join_val and (root / "val").is_dir())]
    images, strangers, unknown = [], [], []
    for (split, class_name), folder in _class_folders(root, splits).items():
        for file in _files(folder):
            path = f"{split}/{folder.name}/{file.name}"
            if os.path.isdir(file):  # False too for a link that leads back to itself
                strangers.append({"path": path, "reason": "a folder inside a class folder"})
            elif file.suffix.lower() not in IMAGE_SUFFIXES:
                strangers.append({"path": path, "reason": f"not an image file ({file.suffix or 'no'} ending)"})
            elif (identity := identify(class_name, file.stem)) is None:
                unknown.append(path)
            else:
                images.append({"image_id": path.removesuffix(file.suffix), "path": path, "label": CLASSES[class_name],
                               "kind": identity[0], "group_id": identity[1], "source_split": split})  # fmt: skip
    _refuse_names(root, unknown, pd.Series([image["image_id"] for image in images], dtype=str))
    return Listing(root, images, strangers, [(split, class_name) for split in splits for class_name in CLASSES])


def _class_folders(root: Path, splits: list[str]) -> dict[tuple[str, str], Path]:
    """(split, NORMAL or PNEUMONIA) to the folder that holds it, whatever its spelling."""
    found: dict[tuple[str, str], Path] = {}
    for split in splits:
        for folder in sorted(root.glob(f"{split}/*/")):
            if name := CLASS_NAMES.get(folder.name.lower()):
                if other := found.get((split, name)):
                    raise DataError(f"{root / split}: {other.name} and {folder.name} name one class; keep one of them")
                found[split, name] = folder
    missing = [f"{split}/{name}" for split in splits for name in CLASSES if (split, name) not in found]
    if missing:
        raise DataError(f"data.root: {root}{_what_is_missing(root, splits, missing)}")
    return found


def _what_is_missing(root: Path, splits: list[str], missing: list[str]) -> str:
    if root.is_file():
        return " is a file; for a table of paths set data.source: csv, for a .npz data.source: npz"
    if not root.is_dir():
        return (
            " is not a folder. `make data` fetches the images; or unpack the Kaggle archive `chest-xray-pneumonia` "
            "there, or name the folder that holds train/, val/ and test/: make report STUDY=<study> DATA=<folder>"
        )
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:12]
    nested = next((p.parent for p in sorted(root.glob("*/train")) if p.parent.name != "__MACOSX"), None)
    hint = f" Did you mean {nested}?" if nested else ""
    if (root / "train/images.tfrec").is_file():
        hint = " It holds TFRecord files: set data.source: tfrecord."
    return (
        f": looked for {', '.join(f'{s}/{c}' for s in splits for c in CLASSES)} (Opacity serves as PNEUMONIA); missing: "
        f"{', '.join(missing)}. Folders found there: {', '.join(found) or 'none'}.{hint}"
    )


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(file for file in folder.iterdir() if not IGNORED.fullmatch(file.name))
    except OSError as fault:
        raise DataError(f"{folder}: cannot be listed: {fault.strerror}. Mend its permissions") from None


def _refuse_names(root: Path, unknown: list[str], ids: pd.Series) -> None:
    if unknown:
        shown = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        raise DataError(
            f"{root}: {len(unknown)} file name(s) follow no known pattern, so their patient cannot be told and they "
            f"could leak between train and test: {shown}. Looked for IM-<N>-<k>[-<j>].jpeg or NORMAL2-IM-<N>-<k>.jpeg "
            f"in NORMAL and person<N>_<bacteria|virus>_<M>.jpeg in PNEUMONIA. Rename the files or move them away; or "
            f"name patients yourself in a table (data.source: csv)."
        )
    if twins := sorted(ids[ids.duplicated()]):
        raise DataError(f"{root}: files that differ in their ending only: {', '.join(twins[:10])}. Keep one each.")
