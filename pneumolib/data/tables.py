"""A table of paths: which column is which, what a label means, which rows are one image and which ids one patient.

Contract: a table is read whole or refused with all its faults, grouped by value, by line. Rows of one file are one image,
whatever their paths; they must agree. Rows that `data.label_values` leaves out are listed with the reason.
"""

import contextlib
import csv
import glob
import io
import os
import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pandas as pd
import yaml

from pneumolib.data.layout import LABEL_NAMES, SPLIT_NAMES, SPLITS
from pneumolib.data.patients import NO_PATIENT, one_spelling, patient_key, plain_text, without_hidden
from pneumolib.errors import DataError
from pneumolib.params import DataParams

NEEDED = ("path", "label", "group_id")
COLUMNS = (*NEEDED, "kind", "split", "site")
PUBLISHED = Path(__file__).with_name("published.yaml")
KIND_LABELS = {"normal": 0, "pneumonia": 1, "bacteria": 1, "virus": 1}
_LABELS = {"0": "normal", "false": "normal", "normal": "normal"}
_LABELS |= dict.fromkeys(("1", "true", "pneumonia", "opacity"), "pneumonia")
_YAML_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}  # YAML reads the first as the second
_RANKS = {"normal": 0, "left_out": 1, "pneumonia": 2}  # of several rows of one image the highest decides
_WORKBOOKS = (b"PK", b"\xd0\xcf\x11\xe0", b"PAR1")  # how .xlsx, .ods and other zip files, .xls and Parquet start
# Columns of our own start with a space, which no head does.
_FILE, _ITEM, _WRITTEN, _SAID, _RANK, _UNKNOWN = " file", " item", " written", " said", " rank", " unknown"


def list_table(file: Path, params: DataParams) -> tuple[list[dict], list[dict]]:
    """The images of a table and the rows left out, as `sources.list_source` gives them; paths are relative to its folder.

    Further columns are kept as text. One that is named like a fact of the file, such as `mode`, gives way to that fact.

    Args:
        file: of comma, semicolon or tab separated text in UTF-8.
        params: `columns`, `label_values`, `path_pattern`, `group_pattern`, `val_folder`.
    Raises:
        DataError: no such table, or all faults of its rows at once.
    """
    table = _our_columns(file, _read_rows(file), params)
    words = [_label_word(value) for value in params.label_values]
    if twice := [value for value in params.label_values if words.count(_label_word(value)) > 1]:
        raise DataError(
            f"{file}: data.label_values names one label twice: {', '.join(map(repr, twice))}. Keep one of them"
        )
    rule = _LABELS | {_label_word(value): meaning for value, meaning in params.label_values.items()}
    read = {value: _meaning(value, rule) for value in table.label.unique()}
    located = {path: _locate(file.parent, params.path_pattern, path) for path in table.path.unique()}
    table[_ITEM] = table.label.map(lambda value: read[value][1])
    table[_FILE] = table.path.map(lambda path: located[path][1])
    ranks = table.label.map(lambda value: _RANKS.get(read[value][0])).astype(float)
    table[_SAID], table[_RANK] = ranks.where(ranks != 1), ranks.groupby(table[_FILE]).transform("max")
    table[_UNKNOWN] = ranks.isna()
    is_out = (table[_RANK] == 1) & ~table[_UNKNOWN]
    kept, left_out = table[~is_out].copy(), table[is_out].drop_duplicates(_FILE)
    if kept.empty:
        raise DataError(f"{file}: data.label_values leaves out every row; labels found: {first_of(list(read), 10)}")
    kept["label"] = kept[_RANK].map({0: 0, 2: 1})
    kept["kind"] = kept.kind.where(kept.kind != "", kept.label.map(LABEL_NAMES))
    kept["split"] = kept.split.map(lambda split: SPLIT_NAMES.get(plain_text(split), plain_text(split)))
    kept[_WRITTEN], kept["group_id"] = kept.group_id, one_spelling(kept.group_id)
    _refuse_rows(file, kept)
    again = kept[_FILE].duplicated()
    spellings = kept[_WRITTEN].groupby(kept.group_id).transform("nunique") > 1
    told = _grouped(kept[spellings], "group_id", _WRITTEN, "is one patient", "group_id")
    if again.any():
        told.append(f"{_lines(kept.index[again])}: an image of an earlier line; each image counts once")
    if told:
        print(f"{file}: {first_of(told, 5, '; ')}", file=sys.stderr)
    out = (params.val_folder == "leave_out") & (kept.split == "val")
    images, val = kept[~again & ~out], kept[~again & out]
    paths = [located[path][0] for path in images.path]
    images = images.assign(path=paths, image_id=paths, label=images.label.astype(int), source_split=images.split)
    reasons = [f"label {item!r} is left_out in data.label_values" for item in left_out[_ITEM]]
    reasons += ["left out by data.val_folder"] * len(val)
    unread = zip([*left_out.path, *val.path], reasons, strict=True)
    strangers = [{"path": located[path][0], "reason": why} for path, why in unread]
    return images[[name for name in images if name[0] != " " and name != "split"]].to_dict("records"), strangers


# --- text to columns


def _read_rows(file: Path) -> pd.DataFrame:
    """The table as text without blank lines, columns named by its heads; the index is the number of each line."""
    if not file.is_file():
        raise DataError(f"{file} is no file; csv wants a table of paths, or a folder with manifest.csv")
    raw, cells, number = file.read_bytes(), {}, 1
    try:
        if raw.startswith(_WORKBOOKS):
            raise ValueError("a workbook, Parquet or zip file")
        text = raw.decode("utf-8-sig")
        separator = max(",;\t", key=text.lstrip().partition("\n")[0].count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for row in reader:
            cells |= {number: [cell.strip() for cell in row]} if any(map(str.strip, row)) else {}
            number = reader.line_num + 1
    except (ValueError, csv.Error) as fault:
        raise DataError(
            f"{file}: not a CSV table in UTF-8: from line {number}: {fault}. Save a workbook (.xlsx, .xls, .ods) as `CSV UTF-8` "
            f"in your spreadsheet program; for a .npz set data.source: npz, a .zip goes to make data FROM="
        ) from None
    if len(cells) < 2:
        raise DataError(f"{file}: the table has no rows. It needs a line of heads, and a line for each image")
    heads = [without_hidden(head) or f"Unnamed: {place}" for place, head in enumerate(cells.pop(min(cells)))]
    plain = Counter(map(plain_text, heads))
    if twice := [head for head in heads if plain[plain_text(head)] > 1]:
        raise DataError(f"{file}: heads that name one column twice: {first_of(twice, 10)}. Rename or delete one")
    if long := [line for line, row in cells.items() if any(row[len(heads) :])]:
        raise DataError(f"{file}: {_lines(long)}: more cells than {len(heads)} heads. Quote cells with {separator!r}")
    full = [(row + [""] * len(heads))[: len(heads)] for row in cells.values()]
    return pd.DataFrame(full, index=list(cells), columns=heads, dtype=object)


def _our_columns(file: Path, rows: pd.DataFrame, params: DataParams) -> pd.DataFrame:
    """`COLUMNS` and the further ones. Without a split all is train, from which `split.test_fraction` may cut test."""
    heads = {plain_text(head): head for head in rows}
    wanted = {name: params.columns.get(name, name) for name in COLUMNS}
    found = {name: heads[plain_text(head)] for name, head in wanted.items() if plain_text(head) in heads}
    if missing := [wanted[n] for n in wanted if n not in found and (n in NEEDED or n in params.columns)]:
        raise DataError(
            f"{file}: missing column(s) {', '.join(missing)}; found {', '.join(rows)}. Needed: {', '.join(NEEDED)}; kind, "
            f"split and site may be added. group_id is the patient. {_lines_to_write(file, rows, heads, params)}"
        )
    # A further column may not pass for one of ours.
    further = [head for head in rows if head not in {*found.values(), *COLUMNS, "image_id", "source_split"}]
    ours = {name: rows[found[name]] if name in found else "train" if name == "split" else "" for name in COLUMNS}
    table = rows[further].assign(**ours)
    if params.group_pattern:
        found = table.group_id.map(re.compile(params.group_pattern).search)
        table["group_id"] = [match[match.re.groups] if match else "" for match in found]
    return table


def _lines_to_write(file: Path, rows: pd.DataFrame, heads: dict[str, str], params: DataParams) -> str:
    """What to write in `study.yaml` for a table with these heads."""
    for name, known in yaml.safe_load(PUBLISHED.read_text(encoding="utf-8")).items():
        columns = known["data"]["columns"]
        if all(plain_text(head) in heads for head in columns.values()):
            data = {"source": "csv", "root": params.root} | known["data"]
            data |= _pattern(file.parent, rows[heads[plain_text(columns["path"])]].iloc[0])
            split = {} if "split" in heads else {"split": {"test_fraction": 0.2}}
            lines = yaml.safe_dump({"data": data} | split, sort_keys=False, default_flow_style=None, width=1000)
            lines = lines.replace("? '' :", "'':")  # how PyYAML writes an empty key
            return f"The heads are those of {name}. {known['note']} Write in study.yaml:\n{lines}"
    return "Say in study.yaml which column is which, for example data.columns: {group_id: Patient ID}"


def _pattern(folder: Path, cell: str) -> dict[str, str]:
    """The `path_pattern` by which a file is found."""
    if (folder.parent / cell).is_file():  # CheXpert's paths start with the name of the folder that holds the table
        return {"path_pattern": "../{}"}
    files = (file.relative_to(folder).as_posix() for file in folder.rglob("*"))
    pattern = next((path.replace(cell, "{}") for path in files if cell and cell in path), "")
    numbered = re.sub(r"\d+(?=.*/)", "*", pattern)  # the images of NIH come in images_001 to images_012
    several = len(glob.glob(os.path.dirname(numbered), root_dir=folder)) > 1
    return {"path_pattern": numbered if several else pattern} if pattern else {}


# --- cells to images


def _label_word(label: str) -> str:
    word = re.sub(r"^([+-]?\d+)\.0*$", r"\1", " ".join(without_hidden(label).casefold().split()))
    return _YAML_WORDS.get(word, word)


def _meaning(label: str, rule: dict[str, str]) -> tuple[str | None, str]:
    """What a label means, None if nobody said so, and the item of a list `a|b` that decides."""
    items = [label] if _label_word(label) in rule else label.split("|")
    found = {rule.get(_label_word(item), rule.get("*")): item.strip() for item in reversed(items)}
    deciding = next(meaning for meaning in ("pneumonia", None, "left_out", "normal") if meaning in found)
    return deciding, found[deciding]


def _locate(folder: Path, pattern: str, cell: str) -> tuple[str, str]:
    """A path under which the file is there, if any, and what is equal for all paths of one file."""
    path = pattern.replace("{}", cell)
    plain = path.replace("\\", "/")
    plain = plain if "\0" in plain else os.path.expanduser(plain)
    for form in (path, plain, unicodedata.normalize("NFC", plain), unicodedata.normalize("NFD", plain)):
        found = glob.glob(form, root_dir=folder) if "*" in pattern and "\0" not in form else [form]
        if len(found) > 1:
            raise DataError(
                f"data.path_pattern {pattern!r} finds {len(found)} files for {cell!r}: {first_of(found, 3)}"
            )
        with contextlib.suppress(OSError, ValueError, IndexError):  # no such file, a NUL in the path, nothing found
            stat = os.stat(os.path.join(folder, found[0]))
            return found[0], f"{stat.st_dev} {stat.st_ino}"
    return plain, os.path.normpath(plain)


def _refuse_rows(file: Path, table: pd.DataFrame) -> None:
    """All faults at once, grouped by value."""
    sides = (table.split == "test").groupby(table.group_id).transform("nunique")
    patients = table.group_id.map({group: patient_key(group) not in NO_PATIENT for group in table.group_id.unique()})
    meanings = "is none of 0, 1, normal, pneumonia, opacity; data.label_values may say: normal, pneumonia or left_out"
    agree = "label, patient, split, kind or site"
    differ = table.groupby(_FILE)[[_SAID, "group_id", "split", "kind", "site"]].transform("nunique").gt(1).any(axis=1)
    crosses = "is in test and in training or validation too; a patient belongs to one of them"
    kinds = table.kind.str.lower().map(KIND_LABELS).astype(float)
    faults = [
        (table.path == "", "path", "path", "is empty", "path"),
        (table.path.str.contains(r"[\0-\x1f]"), "path", "path", "holds a control character", "path"),
        (table[_UNKNOWN], "label", _ITEM, meanings, _ITEM),
        (~patients, "group_id", _WRITTEN, "names no patient; every image needs its patient", _WRITTEN),
        (patients & (sides > 1), "group_id", _WRITTEN, crosses, "group_id"),
        (~table.split.isin(SPLITS), "split", "split", "is none of train, val, test", "split"),
        ((kinds - table.label).abs() > 0, "kind", "kind", "contradicts the label", "kind"),
        (differ & (table.path != ""), "path", "path", "is one file, but its rows differ in " + agree, _FILE),
    ]
    told = [line for bad, *words in faults for line in _grouped(table[bad], *words)]
    if told:
        raise DataError(f"{file}: {len(told)} fault(s):\n  " + first_of(told, 20, "\n  "))


def _grouped(rows: pd.DataFrame, name: str, column: str, words: str, by: str) -> list[str]:
    """A sentence for each value of `by`: the lines where it is, and the first spellings in `column`."""
    told = []
    for _, cells in rows.groupby(by, sort=False)[column]:
        first = cells.drop_duplicates().head(3)
        spelt = [repr(cell) + (f" (line {line})" if len(first) > 1 else "") for line, cell in first.items()]
        told.append(f"{_lines(cells.index)}: {name} {' and '.join(spelt)} {words}")
    return told


def _lines(numbers: list[int]) -> str:
    more = f", ... ({len(numbers)} rows)" if len(numbers) > 3 else ""
    return f"line{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:3]))}{more}"


def first_of(names: list[str], most: int, between: str = ", ") -> str:
    """`names` joined; of many the first `most`, and how many more there are."""
    return between.join(names[:most]) + (f"{between}and {len(names) - most} more" if len(names) > most else "")
