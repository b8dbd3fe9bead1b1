"""Chest-like radiographs on disk in the archive's layout: the demo study's data.

Data contract: `root/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg`, named as the archive names them, and
`layout.MARKER` with the recipe. A patient is (kind, number) and lies in one split only. The archive's traps are
there in small: train NORMAL at JPEG quality 95 and all else at 75, wider images and a few RGB files among PNEUMONIA,
byte-equal copies within a few patients of train, a test set exposed a little differently. No file depends on the order
of the drawing.
"""

import hashlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from pneumolib.data import drawing
from pneumolib.data.drawing import KINDS, draw_radiograph
from pneumolib.data.layout import DRAWN, bar, build

TEST_SHIFT = 0.5  # how far the exposure of test images moves; see `draw_radiograph`
MIN_IMAGES = 24
GROUP_SIZES = {"bacteria": (1, 1, 1, 2, 2, 3, 4, 5), "virus": (1, 1, 1, 2, 3), "normal": (1,) * 9 + (2,)}


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


def draw_dataset(root: Path, n_images: int = 400, seed: int = 1) -> Path:
    """Draw `n_images` files into `root`, unless they lie there by the same recipe, and return `root`.

    A drawing by another recipe is replaced; see `layout.build`. Raises ValueError where `n_images` is below
    MIN_IMAGES, and DataError where `root` holds anything not drawn here.
    """
    if n_images < MIN_IMAGES:
        raise ValueError(f"n_images is {n_images}; the kinds and splits all have patients from {MIN_IMAGES} up")

    def draw(folder: Path) -> None:
        for file in bar(_plan(n_images, seed), n_images, "drawing radiographs"):
            _save(file, folder, seed)

    code = hashlib.sha256(b"".join(Path(m).read_bytes() for m in (__file__, drawing.__file__))).hexdigest()
    build(Path(root), {DRAWN: True, "n_images": n_images, "seed": seed, "code_sha256": code}, draw)
    return Path(root)
