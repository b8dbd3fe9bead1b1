"""Radiographs of a second hospital, drawn: other children, devices and habits than those of `data.synthetic`.

Data contract: `root/table.csv`, columns `path,label,group_id,kind,split,site`, and the files it names at
`root/test/<site>/`; they are read back as a user's own table of paths is. All images are of split `test`, and a patient
has one to three. `layout.MARKER` holds the recipe.

Two sites differ from training, each in its own way. The emergency room exposes dark and flat, leaves wide black borders
and saves JPEG files of low quality; the ward exposes bright, leaves narrow borders and saves PNG files. Both put a lead
letter into a corner, with a label beside it that names nothing. Unlike in training, shape and size do not differ by
class, and pneumonia is rarer. No file depends on the order of the drawing.
"""

import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from pneumolib.data import drawing
from pneumolib.data.drawing import draw_radiograph
from pneumolib.data.layout import DRAWN, KIND_LABELS, bar, build

TABLE = "table.csv"
PREVALENCE = 0.4  # of images with pneumonia
# Numbers of patients begin here: with the first hospital's, a patient would be drawn twice.
FIRST_NUMBER = 1_000_001
_SHARES = {"bacteria": 0.6, "virus": 0.4}  # of the images with pneumonia
SITES = {
    "emergency": SimpleNamespace(gamma=(1.35, 1.7), contrast=(0.65, 0.8), lift=(0, 12), margin=(0.06, 0.14),
                                 width=(560, 640), aspect=(0.95, 1.05), suffix="jpeg", quality=40),
    "ward": SimpleNamespace(gamma=(0.7, 0.9), contrast=(0.8, 0.95), lift=(10, 40), margin=(0.01, 0.05),
                            width=(440, 520), aspect=(1.05, 1.2), suffix="png", quality=None),
}  # fmt: skip


def _plan(n: int, seed: int) -> list[SimpleNamespace]:
    """Every file: kind, patient's number, image of the patient, site, path, group."""
    rng, files = np.random.default_rng([seed, n, 2]), []
    sick = round(PREVALENCE * n)
    bacteria = round(_SHARES["bacteria"] * sick)
    for kind, total in (("bacteria", bacteria), ("virus", sick - bacteria), ("IM", n - sick)):
        number, left = FIRST_NUMBER - 1, total
        while left:
            number += 1
            size = min(left, max(1, total // 4), int(rng.choice([1, 1, 2, 3] if kind != "IM" else [1, 1, 1, 2])))
            site = list(SITES)[number % 2]
            group = f"{'B' if kind == 'bacteria' else 'V' if kind == 'virus' else 'N'}{number - FIRST_NUMBER + 1:05d}"
            for image in range(size):
                path = f"test/{site}/{group}-{image + 1}.{SITES[site].suffix}"
                files.append(SimpleNamespace(kind=kind, number=number, image=image, site=site, path=path, group=group))
            left -= size
    return files


def _table(files: list[SimpleNamespace]) -> pd.DataFrame:
    kinds = [file.kind if file.kind in KIND_LABELS else "normal" for file in files]
    return pd.DataFrame({
        "path": [file.path for file in files], "label": [KIND_LABELS[kind] for kind in kinds],
        "group_id": [file.group for file in files], "kind": kinds, "split": "test", "site": [file.site for file in files],
    })  # fmt: skip


def draw_elsewhere(file: SimpleNamespace, seed: int) -> Image.Image:
    """One image as its site takes it: `kind`, `number`, `image` and `site` say whose."""
    site = SITES[file.site]
    rng = np.random.default_rng([seed, drawing.KINDS.index(file.kind), file.number, file.image, 2])
    u = rng.uniform
    aspect, width = u(*site.aspect), round(u(*site.width))
    values = draw_radiograph(file.kind, file.number, file.image, seed, aspect=aspect, marked=False) / 255
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


def draw_second_hospital(root: Path, n_images: int = 160, seed: int = 1) -> Path:
    """Draw `n_images` files and their table into `root`, unless they lie there by the same recipe; return the table's path.

    Raises DataError where `root` holds anything not drawn here.
    """

    def draw(folder: Path) -> None:
        files = _plan(n_images, seed)
        for file in bar(files, n_images, "drawing a second hospital"):
            target, site = folder / file.path, SITES[file.site]
            target.parent.mkdir(parents=True, exist_ok=True)
            draw_elsewhere(file, seed).save(target, **({"quality": site.quality} if site.quality else {}))
        _table(files).to_csv(folder / TABLE, index=False, lineterminator="\n")

    code = hashlib.sha256(b"".join(Path(m).read_bytes() for m in (__file__, drawing.__file__))).hexdigest()
    recipe = {DRAWN: True, "hospital": 2, "n_images": n_images, "seed": seed, "code_sha256": code, "table": TABLE}
    build(Path(root), recipe, draw)
    return Path(root) / TABLE
