"""Tables as people have them: any heads, labels, ids and paths are read as they are meant, or refused in words."""

import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import save_image
from pneumolib.data.patients import one_spelling, patient_key
from pneumolib.data.sources import list_source
from pneumolib.errors import DataError, ParamsError
from pneumolib.params import DataParams, check
from test_decode import RAMP


def listing(folder: Path, *lines: str, **data):
    """What is listed of a table with these lines."""
    file = folder / "table.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list_source(check({"data": {"source": "csv", "root": str(file)} | data}).data)


def rows_of(images) -> list[tuple]:
    return [(i["path"], i["label"], i["group_id"], i["source_split"]) for i in images]


# --- published tables

NIH = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position"
VINDR = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"
# A table as published, where images of it lie, and the images that are read.
PUBLISHED = {
    "NIH": (
        [
            NIH,
            "1_0.png,No Finding,0,1,58,M,PA",
            "2_0.png,Infiltration|Pneumonia,0,2,81,F,AP",
            "3_0.png,Effusion,0,3,1,F,AP",
        ],
        ["images_001/images/1_0.png", "images_012/images/2_0.png"],
        [("images_001/images/1_0.png", 0, "1", "train"), ("images_012/images/2_0.png", 1, "2", "train")],
    ),
    "CheXpert": (
        ["Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Pneumonia"]
        + [
            f"set/train/patient0000{n}/study1/view1_frontal.jpg,F,68,Frontal,AP,,{v}"
            for n, v in enumerate(("", "1.0", "-1.0"))
        ],
        ["train/patient00000/study1/view1_frontal.jpg"],
        [(f"../set/train/patient0000{n}/study1/view1_frontal.jpg", n, f"patient0000{n}", "train") for n in (0, 1)],
    ),
    "RSNA": (
        ["patientId,x,y,width,height,Target", "0004-fd,,,,,0", "0043-0c,264.0,1,2,3,1", "0043-0c,562.0,1,2,3,1"],
        ["stage_2_train_images/0004-fd.dcm"],
        [(f"stage_2_train_images/{n}.dcm", label, n, "train") for label, n in enumerate(("0004-fd", "0043-0c"))],
    ),
    "VinDr-CXR": (
        [
            VINDR,
            "5a,No finding,14,R1,,,,",
            "5a,No finding,14,R2,,,,",
            "9b,Lung Opacity,7,R1,1,2,3,4",
            "9b,ILD,5,R2,1,2,3,4",
        ],
        ["train/5a.dicom"],
        [("train/5a.dicom", 0, "5a", "train"), ("train/9b.dicom", 1, "9b", "train")],
    ),
    "VinDr, a column": (
        ["image_id,rad_ID,No finding,Bronchitis,Pneumonia", "5a,R1,1,0,0", "9b,R1,0,0,1"],
        ["elsewhere/5a.png"],  # found where it is
        [("elsewhere/5a.png", 0, "5a", "train"), ("elsewhere/9b.png", 1, "9b", "train")],
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_message_for_a_published_table_gives_lines_that_read_it(tmp_path, name):
    lines, files, expected = PUBLISHED[name]
    folder = tmp_path / "set"
    for file in files:
        save_image(folder / file, RAMP.astype(np.uint8), format="PNG")
    with pytest.raises(DataError, match=re.escape(f"The heads are those of {name}")) as refused:
        listing(folder, *lines)
    written = yaml.safe_load(str(refused.value).split("study.yaml:\n")[1])
    params = check(written)
    assert params.split.test_fraction == 0.2
    assert rows_of(list_source(params.data)[1]) == expected
    if "*" in params.data.path_pattern:
        save_image(folder / files[0].replace("1", "2", 1), RAMP.astype(np.uint8))
        with pytest.raises(DataError, match=r"path_pattern 'images_\*/images/\{\}' finds 2 files for '1_0.png'"):
            list_source(params.data)


# --- labels, heads, paths


def test_labels_are_compared_as_text_whatever_yaml_made_of_the_keys(tmp_path):
    lines = "data: {label_values: {1.0: pneumonia, -1: left_out, ~: normal, yes: pneumonia, NO: normal, a b: left_out}}"
    values = yaml.safe_load(lines)["data"]
    labels = ["1", "1.00", "-1.0", "", "Yes", "true", "no", "False", "A  B", "A b|1"]
    _, images, strangers = listing(
        tmp_path, "path,label,group_id", *(f"{n},{label},p{n}" for n, label in enumerate(labels)), **values
    )
    assert [(i["path"], i["label"]) for i in images] == list(zip("01345679", [1, 1, 0, 1, 1, 0, 0, 1], strict=True))
    assert {(s["path"], s["reason"]) for s in strangers} == {
        ("2", "label '-1.0' is left_out in data.label_values"), ("8", "label 'A  B' is left_out in data.label_values"),
    }  # fmt: skip


def test_faults_are_grouped_by_value(tmp_path):
    rows = [f"{n}.png,{('Effusion', 'Mass|Effusion', '1')[n % 3]},{('nan', 'N/A', 'p')[n % 3]}" for n in range(30)]
    with pytest.raises(DataError) as refused:
        listing(tmp_path, "path,label,group_id", *rows)
    said = str(refused.value)
    assert "4 fault(s)" in said
    assert "lines 2, 5, 8, ... (10 rows): label 'Effusion' is none of 0, 1, normal" in said
    assert "lines 3, 6, 9, ... (10 rows): label 'Mass' is none of" in said
    assert "lines 3, 6, 9, ... (10 rows): group_id 'N/A' names no patient" in said


def test_one_file_by_several_paths_is_one_image(tmp_path):
    name = unicodedata.normalize("NFC", "é.png")
    save_image(tmp_path / "images" / name, RAMP.astype(np.uint8))
    (tmp_path / "link.png").symlink_to(tmp_path / "images" / name)
    os.link(tmp_path / "images" / name, tmp_path / "hard.png")
    paths = [f"images/{name}", f"images\\{unicodedata.normalize('NFD', name)}", "link.png", "hard.png"]
    paths += [str(tmp_path / "images" / name), f"./images/../images/{name}"]
    head = " PATH ,Label,Group\u200b_ID,Split"
    _, images, _ = listing(tmp_path, head, *(f"{path},normal,7,Validation" for path in paths))
    assert rows_of(images) == [(f"images/{name}", 0, "7", "val")]
    for path in paths[1:]:
        words = rf"lines 2, 3: path 'images/{name}' \(line 2\) and .* \(line 3\) is one file, but its rows differ"
        with pytest.raises(DataError, match=words):
            listing(tmp_path, head, f"{paths[0]},0,7,Train", f"{path},0,elsewhere,TEST")


def test_parameters_of_tables_are_checked(tmp_path):
    for data, words in (
        ({"source": "npz", "columns": {"path": "x"}}, "are for source: csv"),
        ({"source": "csv", "group_pattern": "("}, "is no regular expression"),
        ({"source": "csv", "path_pattern": "images/"}, "path_pattern"),
        ({"source": "csv", "label_values": {"1": "ill"}}, "label_values.1: .*received 'ill'"),
    ):
        with pytest.raises(ParamsError, match=words):
            check({"data": data})
    with pytest.raises(DataError, match=r"missing column\(s\) Hospital; found path, label, group_id"):
        listing(tmp_path, "path,label,group_id", "a,1,p", columns={"site": "Hospital"})
    twice = {"Neg": "normal", "1": "normal", "neg": "pneumonia", "1.0": "pneumonia"}
    with pytest.raises(DataError, match=r"label_values names one label twice: 'Neg', '1', 'neg', '1\.0'"):
        listing(tmp_path, "path,label,group_id", "a,1,p", label_values=twice)


@pytest.mark.parametrize("known", ["normal", "pneumonia", "left_out"])
def test_an_unknown_label_beside_a_known_one_of_the_same_image_is_a_fault(tmp_path, known):
    values = {"label_values": {"left_out": "left_out"}}
    with pytest.raises(DataError, match="line 3: label 'foo' is none of"):
        listing(tmp_path, "path,label,group_id", f"a,{known},p", "a,foo,p", "b,0,q", **values)


def test_a_validation_set_that_is_left_out_is_listed(tmp_path):
    rows = ["a,1,p,train", "b,0,q,valid", "c,normal,r,test"]
    _, images, strangers = listing(tmp_path, "path,label,group_id,split", *rows, val_folder="leave_out")
    assert [image["path"] for image in images] == ["a", "c"]
    assert strangers == [{"path": "b", "reason": "left out by data.val_folder"}]


# --- patients

IDS = st.text(st.sampled_from("01207aBß.- \u200bé"), max_size=6)


@given(
    number=st.integers(0, 10**9),
    prefix=st.sampled_from(["", "P", "patient-", "Ä "]),
    zeros=st.integers(0, 5),
    data=st.data(),
)
def test_ids_of_one_patient_have_one_key_and_others_have_others(number, prefix, zeros, data):
    changes = (str.upper, str.lower, lambda t: f" {t}\u00a0", lambda t: t + ".0", lambda t: "\ufeff" + t,
               lambda t: unicodedata.normalize("NFD", t), lambda t: t.translate({48 + d: 0xFF10 + d for d in range(10)}))  # fmt: skip
    written = prefix + "0" * zeros + str(number)
    other = written
    for change in data.draw(st.lists(st.sampled_from(changes), unique=True, max_size=4)):
        other = change(other)
    assert patient_key(other) == patient_key(written) == patient_key(patient_key(other))
    assert patient_key(prefix + str(number + 1)) != patient_key(written)
    assert patient_key(f"ward2/{'0' * zeros}{number}") == patient_key(f"Ward2/{number}")


@given(st.lists(IDS, min_size=1, max_size=8), st.randoms())
def test_one_spelling_a_patient_whatever_the_order(ids, random):
    one = dict(zip(ids, one_spelling(pd.Series(ids)), strict=True))
    assert all((one[a] == one[b]) == (patient_key(a) == patient_key(b)) for a in ids for b in ids)
    assert set(one.values()) <= set(ids)
    assert dict(zip(ids, one_spelling(pd.Series(random.sample(ids, len(ids)) + ids))[-len(ids) :], strict=True)) == one


def test_two_spellings_of_one_patient_are_one_or_refused(tmp_path, capsys):
    head = "path,label,group_id,split"
    _, images, _ = listing(tmp_path, head, "a.png,1,00000007,train", "b.png,0,7.0,train", "c.png,0,8,test")
    assert [image["group_id"] for image in images] == ["7.0", "7.0", "8"]
    assert "lines 2, 3: group_id '00000007' (line 2) and '7.0' (line 3) is one patient" in capsys.readouterr().err
    words = r"lines 2, 3: group_id '00000007' \(line 2\) and '7' \(line 3\) is in test and in training"
    with pytest.raises(DataError, match=words):
        listing(tmp_path, head, "a.png,1,00000007,train", "b.png,0,7,test")


# --- any table

CELLS = st.text(st.sampled_from("a1.0|\"',;\n\t\0\u200bé=\\/~ "), max_size=5)
LABELS = st.sampled_from(["0", "1", "Normal", "PNEUMONIA ", "True", "no", "x", "x|1", "?", "", "1.0"])
SPLITS = st.sampled_from(["train", "TRAIN", " test", "Valid", "dev", "", "x"])


@st.composite
def odd_tables(draw):
    """Heads, rows and `label_values`."""
    heads = draw(
        st.lists(st.sampled_from(["path", "label", "group_id", "split", "kind", "site"]), min_size=3, unique=True)
    )
    if draw(st.booleans()):
        heads = list(dict.fromkeys(["path", "label", "group_id", *heads]))
    cells = {"path": st.sampled_from(["a.png", "./a.png", "b", "c"]) | CELLS, "label": LABELS, "split": SPLITS}
    rows = draw(st.lists(st.tuples(*(cells.get(head, IDS | CELLS) for head in heads)), max_size=6))
    spoilt = [draw(st.sampled_from([head, head.upper(), f" {head}\ufeff"])) for head in heads] + draw(
        st.lists(CELLS, max_size=1)
    )
    return spoilt, rows, draw(st.sampled_from([{}, {"x": "left_out"}, {"*": "left_out", "": "normal"}]))


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(odd_tables(), st.sampled_from(",;\t"))
def test_any_table_is_listed_as_it_is_or_refused(tmp_path, table, separator):
    heads, rows, label_values = table
    file = tmp_path / "odd.csv"
    pd.DataFrame([list(row) + [""] * (len(heads) - len(row)) for row in rows], columns=heads).to_csv(
        file, index=False, sep=separator
    )
    try:
        _, images, strangers = list_source(DataParams(source="csv", root=str(file), label_values=label_values))
    except DataError:
        return
    named = {row[[h.strip(" \ufeff").lower() for h in heads].index("path")].strip() for row in rows}
    assert len(images) + len(strangers) <= len(named)
    assert {os.path.normpath(i["path"]) for i in images + strangers} == {
        os.path.normpath(os.path.expanduser(name.replace("\\", "/"))) for name in named
    }
    assert all(image["label"] in (0, 1) and patient_key(image["group_id"]) for image in images)
    sides = pd.DataFrame(images, columns=["group_id", "source_split"])
    assert (sides.source_split == "test").groupby(sides.group_id.map(patient_key)).nunique().le(1).all()
