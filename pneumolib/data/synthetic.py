"""Chest-like radiographs on disk, drawn and taken of nobody: the demo's archive, and a second hospital to try a model on.

`draw_dataset` writes the archive's layout: `root/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg`, named as the archive names
them. A patient is (kind, number) and lies in one split only. The archive's traps are there in small: train NORMAL at
JPEG quality 95 and all else at 75, wider images and a few RGB files among PNEUMONIA, byte-equal copies within a few
patients of train, a test set exposed a little differently.

`draw_second_hospital` writes `root/table.csv`, columns `path,label,group_id,kind,split,site`, and the files that it names
at `root/test/<site>/`; they are read back as a user's own table of paths is. A patient has one to three images. The
emergency room exposes dark and flat, leaves wide black borders and saves JPEG files of low quality; the ward exposes
bright, leaves narrow borders and saves PNG files. Both put a lead letter into a corner, with a label beside it that
names nothing. Unlike in training, shape and size do not differ by class, and pneumonia is rarer.

Each folder holds its recipe in `layout.MARKER`. No file depends on the order of the drawing.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from pneumolib.data import drawing
from pneumolib.data.drawing import KINDS, draw_radiograph
from pneumolib.data.layout import DRAWN, bar, build

TEST_SHIFT = 0.5  # how far the exposure of test images moves; see `draw_radiograph`
GROUP_SIZES = {"bacteria": (1, 1, 1, 2, 2, 3, 4, 5), "virus": (1, 1, 1, 2, 3), "normal": (1,) * 9 + (2,)}

TABLE, TABLE_COLUMNS = "table.csv", ["path", "label", "group_id", "kind", "split", "site"]
PREVALENCE = 0.4  # of the second hospital's images
# Its patients' numbers begin here: with the first hospital's, a patient would be drawn twice.
FIRST_NUMBER = 1_000_001
SITES = {
    "emergency": SimpleNamespace(gamma=(1.35, 1.7), contrast=(0.65, 0.8), lift=(0, 12), margin=(0.06, 0.14),
                                 width=(560, 640), aspect=(0.95, 1.05), suffix="jpeg", options={"quality": 40}),
    "ward": SimpleNamespace(gamma=(0.7, 0.9), contrast=(0.8, 0.95), lift=(10, 40), margin=(0.01, 0.05),
                            width=(440, 520), aspect=(1.05, 1.2), suffix="png", options={}),
}  # fmt: skip


def draw_dataset(root: Path, n_images: int = 400, seed: int = 1) -> Path:
    """Draw `n_images` files into `root`, unless they lie there by the same recipe, and return `root`.

    A drawing by another recipe is replaced; see `layout.build`. From 24 images up all kinds and splits have patients.
    Raises DataError where `root` holds anything not drawn here.
    """

    def draw(folder: Path) -> None:
        for file in bar(_plan(n_images, seed), n_images, "drawing radiographs"):
            _save(file, folder, seed)

    return _build(root, {"n_images": n_images, "seed": seed}, draw)


def draw_second_hospital(root: Path, n_images: int = 160, seed: int = 1) -> Path:
    """Draw `n_images` files and their table into `root`, unless they lie there by the same recipe; return the table's path.

    Raises DataError where `root` holds anything not drawn here.
    """

    def draw(folder: Path) -> None:
        files = _plan_second(n_images, seed)
        for site in SITES:
            (folder / "test" / site).mkdir(parents=True)
        for file in bar(files.itertuples(), n_images, "drawing a second hospital"):
            _draw_at_site(file, seed).save(folder / file.path, **SITES[file.site].options)
        files[TABLE_COLUMNS].to_csv(folder / TABLE, index=False, lineterminator="\n")

    return _build(root, {"hospital": 2, "n_images": n_images, "seed": seed, "table": TABLE}, draw) / TABLE


def _build(root: Path, recipe: dict, draw: Callable[[Path], None]) -> Path:
    code = hashlib.sha256(b"".join(Path(m).read_bytes() for m in (__file__, drawing.__file__))).hexdigest()
    return build(Path(root), {DRAWN: True, **recipe, "code_sha256": code}, draw)


def _blocks(n: int) -> list[tuple[str, str, int]]:
    """(kind, split, images) in the order of the patients' numbers: test holds whole blocks."""
    val, test = 8 if n >= 200 else max(1, n // 25), round(n / 4)
    size = {("bacteria", "val"): val, ("NORMAL2-IM", "val"): val}
    for split, total, prevalence in (("test", test, 0.625), ("train", n - test - 2 * val, 0.743)):
        sick = round(prevalence * total)
        size["bacteria", split], size["virus", split] = round(0.62 * sick), sick - round(0.62 * sick)
        size["IM", split], size["NORMAL2-IM", split] = (total - sick + 1) // 2, (total - sick) // 2
    # Bacteria begin in train and the rest in test, so that a number meets another kind's in the other split.
    order = {"bacteria": ("train", "test", "val")}
    pairs = [(kind, split) for kind in KINDS for split in order.get(kind, ("test", "train", "val"))]
    return [(kind, split, size[kind, split]) for kind, split in pairs if (kind, split) in size]


def _plan(n: int, seed: int) -> list[SimpleNamespace]:
    """Every file: path, kind, patient's number, image of the patient, split, sick, RGB, what it copies."""
    rng, files = np.random.default_rng([seed, n]), []
    number, serial = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    for kind, split, left in _blocks(n):
        sick, most = kind in KINDS[:2], max(1, left // 2)  # two patients or more in a block
        size = 2 if sick else 1
        while left:
            number[kind] += 1 + (number[kind] > 0 and rng.random() < 0.2)
            size = min(left, most, size)
            for image in range(size):
                serial[kind] += int(rng.integers(1, 4))
                name = f"person{number[kind]}_{kind}_{serial[kind]}"
                if not sick:
                    name = f"{kind}-{number[kind]:04d}-0001" + (f"-{image + 1:04d}" if size > 1 else "")
                file = SimpleNamespace(kind=kind, number=number[kind], image=image, split=split, sick=sick)
                file.path = f"{split}/{'PNEUMONIA' if sick else 'NORMAL'}/{name}.jpeg"
                files.append(file)
            left, size = left - size, int(rng.choice(GROUP_SIZES.get(kind, GROUP_SIZES["normal"])))
    _choose_copies_and_colour(files, rng)
    return files


def _choose_copies_and_colour(files: list[SimpleNamespace], rng: np.random.Generator) -> None:
    """Set `source`, the patient's image before if this one copies it, and `rgb`; both are of train only."""
    train = [i for i, f in enumerate(files) if f.split == "train"]
    again = [i for i in train if files[i].image > 0]
    copies = set(rng.choice(again, min(1 + len(files) // 100, len(again)), replace=False).tolist())
    grey = [i for i in train if files[i].sick and i not in copies]
    colour = set(rng.choice(grey, max(1, round(0.05 * len(grey))), replace=False).tolist())
    for i, file in enumerate(files):
        file.source, file.rgb = files[i - 1].path if i in copies else None, i in colour


def _save(file: SimpleNamespace, folder: Path, seed: int) -> None:
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if file.source:
        shutil.copyfile(folder / file.source, target)
        return
    values = draw_radiograph(file.kind, file.number, file.image, seed, shift=TEST_SHIFT * (file.split == "test"))
    image = Image.fromarray(values).convert("RGB" if file.rgb else "L")
    image.save(target, "JPEG", quality=95 if file.split == "train" and not file.sick else 75)


def _plan_second(n: int, seed: int) -> pd.DataFrame:
    """Every file of the second hospital: `number` of the patient, `image` of the patient, and `TABLE_COLUMNS`."""
    rng, rows, sick = np.random.default_rng([seed, n, 2]), [], round(PREVALENCE * n)
    bacteria = round(0.6 * sick)
    for kind, total in (("bacteria", bacteria), ("virus", sick - bacteria), ("normal", n - sick)):
        number, left = FIRST_NUMBER - 1, total
        while left:
            number += 1
            size = min(left, max(1, total // 4), int(rng.choice([1, 1, 1, 2] if kind == "normal" else [1, 1, 2, 3])))
            site, group = list(SITES)[number % 2], f"{kind[0].upper()}{number - FIRST_NUMBER + 1:05d}"
            for image in range(size):
                path = f"test/{site}/{group}-{image + 1}.{SITES[site].suffix}"
                rows.append((number, image, path, int(kind != "normal"), group, kind, "test", site))
            left -= size
    return pd.DataFrame(rows, columns=["number", "image", *TABLE_COLUMNS])


def _draw_at_site(file: NamedTuple, seed: int) -> Image.Image:
    """One image as its site takes it."""
    site = SITES[file.site]
    kind = "IM" if file.kind == "normal" else file.kind
    rng = np.random.default_rng([seed, KINDS.index(kind), file.number, file.image, 2])
    u = rng.uniform
    aspect, width = u(*site.aspect), round(u(*site.width))
    values = draw_radiograph(kind, file.number, file.image, seed, aspect=aspect) / 255
    values = values ** u(*site.gamma) * 255 * u(*site.contrast) + u(*site.lift)
    body = Image.fromarray(np.clip(values, 0, 255).round().astype(np.uint8))
    film = Image.new("L", (width, round(width / aspect)), round(u(0, 6)))
    left, top, right, bottom = (round(u(*site.margin) * width) for _ in range(4))
    inner = (film.width - left - right, film.height - top - bottom)
    film.paste(body.resize(inner, Image.Resampling.BICUBIC), (left, top))
    _label(film, rng)
    return film


def _label(film: Image.Image, rng: np.random.Generator) -> None:
    """A lead letter in a box, and lines where a name would stand, in one of the upper corners."""
    u, pen = rng.uniform, ImageDraw.Draw(film)
    unit = film.width * u(0.012, 0.016)
    on_left = u() < 0.5
    x, y = (film.width * 0.03 if on_left else film.width * 0.97 - 12 * unit), film.height * u(0.02, 0.05)
    pen.rectangle((x, y, x + 4 * unit, y + 5 * unit), outline=255, width=max(1, round(unit / 3)))
    letter = [(1.2, 4.2), (1.2, 0.8), (2.8, 0.8), (2.8, 2.4), (1.2, 2.4), (2.9, 4.2)]  # R, on the patient's right
    if not on_left:
        letter = [(1.2, 0.8), (1.2, 4.2), (2.9, 4.2)]  # L
    pen.line([(x + unit * px, y + unit * py) for px, py in letter], fill=255, width=max(1, round(unit / 2)))
    for line, length in enumerate(u(3, 7, 3)):
        low = y + unit * (0.6 + 1.6 * line)
        pen.rectangle((x + 5 * unit, low, x + (5 + length) * unit, low + 0.7 * unit), fill=200)
