"""One chest-like radiograph from random numbers, drawn and taken of nobody: `draw_radiograph`.

Every pixel comes from (seed, kind, patient, image) alone. Lengths are in half widths of the thorax, x from the spine
to the image's right, y from the lung apex down.
"""

from types import SimpleNamespace

import numpy as np
import scipy  # its modules are imported when they are used: the up-to-date check draws nothing
from PIL import Image, ImageDraw

KINDS = ("bacteria", "virus", "IM", "NORMAL2-IM")
GRID_WIDTH = 248  # pixels; the anatomy is soft, so it is drawn at this width and then resized


def _step(value: np.ndarray, soft: float) -> np.ndarray:
    """Soft step from 0 (value <= -soft) to 1 (value >= soft)."""
    t = np.clip(value / (2 * soft) + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def _bell(value: np.ndarray, width: float) -> np.ndarray:
    return np.exp(-((value / width) ** 2))


def _noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Smooth noise, SD about 1, whose blobs are `scale` pixels wide."""
    coarse = rng.standard_normal([int(s / scale) + 4 for s in shape], dtype=np.float32)
    return 1.4 * np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC))


def _rods(g: SimpleNamespace, start: tuple, end: tuple, radius: float) -> np.ndarray:
    """Thickness, 0 to 1, of a round rod from `start` to `end` and of its mirror image."""
    dx, dy, px, py = end[0] - start[0], end[1] - start[1], g.ax - start[0], g.y - start[1]
    t = np.clip((px * dx + py * dy) / (dx * dx + dy * dy), 0, 1)
    return np.sqrt(np.clip(1 - ((px - t * dx) ** 2 + (py - t * dy) ** 2) / radius**2, 0, 1))


def _anatomy(rng: np.random.Generator) -> SimpleNamespace:
    """What all images of one patient share."""
    u = rng.uniform
    return SimpleNamespace(
        cage=u(0.90, 1.0), cage_power=u(2.2, 3.0), dome=u(0.94, 1.1), arch=u(0.12, 0.26), heart=u(0.85, 1.15),
        spacing=u(0.165, 0.2), rib_curve=u(0.35, 0.55), rib=u(0.13, 0.22), thymus=u(0, 1) ** 2, gas=u(0, 1),
        arm=u(-0.7, 0.9), wall=u(1.05, 1.2), view=u(2.0, 2.5), top=u(-0.4, -0.12), fat=u(0.9, 1.1),
    )  # fmt: skip


def _disease(rng: np.random.Generator, kind: str) -> SimpleNamespace:
    """Focal opacities, even haze and interstitial texture; normal lungs carry mild look-alikes."""
    u = rng.uniform
    count, density, haze, texture = {
        "bacteria": (1 + (u() < 0.4), (0.6, 1.0), u(0.05, 0.3), u(0, 0.4)),
        "virus": (int(u() < 0.3), (0.15, 0.4), u(0.25, 0.6), u(0.4, 1.0)),
    }.get(kind, (int(u() < 0.25), (0.08, 0.25), u(0, 0.12), u(0, 0.25)))
    focal = [
        SimpleNamespace(side=1 if u() < 0.5 else -1, rho=u(0.4, 0.85), eta=u(0.2, 0.95), radius=u(0.17, 0.37),
                        density=u(*density), lobar=kind == "bacteria" and u() < 0.4) for _ in range(count)
    ]  # fmt: skip
    return SimpleNamespace(focal=focal, haze=haze, texture=texture)


def _grid(rng: np.random.Generator, a: SimpleNamespace, aspect: float) -> SimpleNamespace:
    """Body coordinates of every pixel in this image's pose; half width of the cage; rho, the part of it."""
    shape = (round(GRID_WIDTH / aspect), GRID_WIDTH)
    view, angle = a.view * rng.uniform(0.96, 1.04), rng.normal(0, 0.035)
    col = np.linspace(-0.5, 0.5, shape[1], dtype=np.float32)[None]
    row = np.linspace(0, shape[0] / shape[1], shape[0], dtype=np.float32)[:, None]
    x = view * (col + angle * (row - 0.4)) + rng.normal(0, 0.05)
    y = view * (row - angle * col) + a.top + rng.normal(0, 0.04)
    half = a.cage * np.sqrt(1 - np.clip((1.25 - y) / 1.32, 0, 1) ** a.cage_power) + 0.02
    return SimpleNamespace(x=x, y=y, ax=np.abs(x), half=half, rho=np.abs(x) / half, shape=shape)


def _lungs(g: SimpleNamespace, a: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    """Share of air along the ray, 0 to 1, but for opacities; the shadow of heart and mediastinum."""
    floor = a.dome + a.arch * ((g.ax - 0.42) / 0.4) ** 2 + 0.05 * _step(g.x, 0.1)
    air = _step(0.95 - g.rho, 0.06) * _step(floor - g.y, 0.03) * _step(g.y - 0.02, 0.05)
    # An oblique ellipse to the image's right for the ventricles, an upright one for the right atrium.
    hx, hy = g.x - 0.13, g.y - (a.dome - 0.22)
    left = ((0.85 * hx - 0.53 * hy) / 0.27) ** 2 + ((0.53 * hx + 0.85 * hy) / 0.5) ** 2
    right = ((g.x + 0.1) / 0.24) ** 2 + (hy / 0.42) ** 2
    heart = np.maximum(_step(a.heart - left, 0.25), _step(a.heart - right, 0.3))
    middle = 0.15 + 0.04 * a.heart + (0.03 + 0.1 * a.thymus) * _bell(g.y - 0.3, 0.25)
    middle = middle + 0.03 * np.sin(5 * g.y + 3 * _step(g.x, 0.1))
    return air, np.maximum(heart, _step(middle - g.ax, 0.05))


def _aerated(g: SimpleNamespace, a: SimpleNamespace, sick: SimpleNamespace, rng: np.random.Generator) -> np.ndarray:
    """Share of the air, 0 to 1, that the opacities leave."""
    left, eta = 1.0, g.y / a.dome
    for spot in sick.focal:
        edge = 0.35 * _noise(rng, g.shape, 22)
        if spot.lobar:  # a lobe ends sharply at its fissure
            zone = (0.48 - eta if spot.eta < 0.5 else eta - 0.58) + 0.1 * (g.rho - 0.5)
            shape = _step(zone + 0.06 * edge, 0.05)
        else:
            away = np.hypot(g.x - spot.side * spot.rho * 0.85, g.y - spot.eta * a.dome)
            shape = _step(1 - away / spot.radius + edge, 0.7)
        density = spot.density * rng.uniform(0.85, 1.1) * (0.85 + 0.15 * _noise(rng, g.shape, 9))
        left = left * (1 - np.clip(density, 0, 0.97) * shape * _step(spot.side * g.x, 0.05))
    hilar, fine = _bell(g.ax - 0.3, 0.45) * _bell(eta - 0.6, 0.5), _noise(rng, g.shape, 5)
    haze = sick.haze * (0.35 + 0.8 * hilar) * (1 + 0.5 * _noise(rng, g.shape, 40))
    net = 0.16 * fine + 0.22 * np.maximum(0, 1 - 2 * np.abs(fine)) - 0.1
    net = net * sick.texture * (0.3 + 0.7 * hilar)
    return left * np.clip(1 - haze - net, 0.05, 1.1)


def _vessels(g: SimpleNamespace, a: SimpleNamespace, rng: np.random.Generator) -> np.ndarray:
    """Branches that leave both hila and thin out, 0 to 1."""
    canvas, unit = Image.new("F", g.shape[::-1]), GRID_WIDTH / (g.x[0, -1] - g.x[0, 0])
    pen = ImageDraw.Draw(canvas)
    for side in (-1, 1):
        hilum = np.argmin((g.x - side * 0.27) ** 2 + (g.y - 0.55 * a.dome) ** 2)
        row, col = divmod(int(hilum), GRID_WIDTH)
        twigs = [(col, row, angle, 0.2 * unit, 3) for angle in rng.uniform(-1.2, 1.5, 9)]
        while twigs:
            x, y, angle, length, order = twigs.pop()
            tip = (x + side * length * np.cos(angle), y + length * np.sin(angle))
            pen.line((x, y, *tip), fill=0.2 + 0.2 * order, width=order)
            if order > 1:
                twigs += [(*tip, angle + turn, length * 0.8, order - 1) for turn in rng.normal(0, 0.45, 2)]
    return scipy.ndimage.gaussian_filter(np.asarray(canvas), 1.1)


def _bones(g: SimpleNamespace, a: SimpleNamespace) -> np.ndarray:
    """Extra attenuation of ribs, spine, clavicles, upper arms and shoulder blades."""
    bend = a.rib_curve * g.rho**2.6 - 0.16 * g.rho
    back = (g.y - bend * (0.6 + 0.45 * g.y)) / a.spacing
    front = (g.y - a.rib_curve * 1.2 * (1 - g.rho) - 0.8 * bend) / a.spacing + 0.3
    bone = 0.4 * a.rib * _bell(g.rho - 0.98, 0.03) * _step(g.y - 0.1, 0.1)
    # Ribs are denser where they turn edge-on at the side, and fainter through the belly.
    fuller = (1 - 0.6 * _step(g.y - a.dome - 0.15, 0.2)) * (0.8 + 0.7 * (g.rho * g.rho) ** 3)
    for phase, strength, inner in ((back, a.rib, 0.12), (front, 0.6 * a.rib, 0.5)):
        off = np.abs(phase - np.round(phase))
        band = _step(0.2 - off, 0.04) * (0.55 + 0.75 * _bell(off - 0.16, 0.05))
        inside = _step(g.rho - inner, 0.1) * _step(1.01 - g.rho, 0.02) * _step(phase - 0.2, 0.3)
        bone += strength * band * inside * fuller
    turn = np.cos(2 * np.pi * g.y / (0.9 * a.spacing))
    bone += 0.24 * _step(0.11 + 0.006 * turn - g.ax, 0.015) * (0.7 + 0.3 * _step(turn + 0.7, 0.2))
    bone += 0.16 * _bell(g.ax - 0.085, 0.02) * _bell(1 - turn, 0.5)
    bow, end = (0.4, -0.05), (0.78, -0.14 + 0.05 * a.arm)
    bone += 0.25 * np.maximum(_rods(g, (0.1, 0.03), bow, 0.035), _rods(g, bow, end, 0.04))
    bone += 0.25 * _rods(g, (1.0, -0.04), (1.9, a.arm - 0.1), 0.08)
    bone += 0.20 * _rods(g, (0.97, -0.05), (1.05, a.arm * 0.1 - 0.06), 0.12)
    return bone + 0.12 * _rods(g, (0.84, -0.04), (0.98, 0.5), 0.1)


def _flesh(g: SimpleNamespace, a: SimpleNamespace, air: np.ndarray) -> np.ndarray:
    """Attenuation of torso less the lungs' air, neck, arms, jaw, windpipe and belly with its gas."""
    wall = a.wall * a.cage + 0.04 * np.cos(2 * g.y)
    torso = 1.2 * np.sqrt(np.clip(1 - (g.x / wall) ** 2, 0, 1)) * _step(g.y + 0.28 - 0.28 * g.ax, 0.12)
    flesh = np.maximum(torso, 0.9 * np.sqrt(np.clip(1 - (g.x / 0.42) ** 2, 0, 1)) * _step(0.2 - g.y, 0.2))
    flesh = np.maximum(flesh, 0.75 * _rods(g, (0.75, 0.08), (1.9, a.arm), 0.3)) * a.fat * (1 - 0.74 * air)
    flesh += 0.5 * _step(1 - (g.x / 0.55) ** 2 - ((g.y + 0.72) / 0.32) ** 2, 0.2)
    flesh -= 0.2 * _step(0.045 - np.abs(g.x + 0.02), 0.03) * _step(0.4 - g.y, 0.1)
    bubble = _step(1 - ((g.x - 0.45) / 0.24) ** 2 - ((g.y - a.dome - 0.38) / 0.13) ** 2, 0.5)
    return flesh + _step(g.y - a.dome - 0.1, 0.12) * _step(0.95 - g.rho, 0.1) * (0.3 - 0.55 * a.gas * bubble)


def _expose(g: SimpleNamespace, dense: np.ndarray, rng: np.random.Generator, shift: float) -> Image.Image:
    """Display values, 0 to 255, of an attenuation: Beer-Lambert, beam, gamma, contrast, collimation, blur."""
    u = rng.uniform
    beam = u(0.85, 1.15) * (1 + u(-0.1, 0.1) * g.x + 0.04 * _noise(rng, g.shape, 70)) * (1 + 0.1 * shift)
    image = np.clip((1 - np.exp(-np.maximum(dense * beam, 0))) * u(0.95, 1.15), 0, 1)
    image = u(0, 30) + u(205, 235) * image ** (u(0.85, 1.2) - 0.12 * shift)
    if u() < 0.4:
        image[round(u(0.9, 1) * len(image)) :] *= 0.1
        image[:, np.abs(np.linspace(-1, 1, GRID_WIDTH)) > u(0.88, 1)] *= 0.1
    return Image.fromarray(scipy.ndimage.gaussian_filter(image, u(0.5, 0.9)))


def _mark(image: Image.Image, rng: np.random.Generator) -> None:
    """Draw an R beside the patient's right, seldom an L beside the left."""
    u, pen = rng.uniform, ImageDraw.Draw(image)
    s, left, white = image.width * u(0.012, 0.022), u() < 0.85, u(190, 255)
    x, y = image.width * (u(0.02, 0.12) if left else u(0.86, 0.95)), image.height * u(0.02, 0.45)
    letter = [(0, 0), (0, 3), (1.6, 3)]
    if left:
        letter = [(0, 3), (0, 0), (1.6, 0), (1.6, 1.5), (0, 1.5), (1.8, 3)]
    pen.line([(x + s * px, y + s * py) for px, py in letter], fill=white, width=max(1, round(s / 2)))


def draw_radiograph(
    kind: str, number: int = 1, image: int = 0, seed: int = 1, shift: float = 0.0, aspect: float | None = None
) -> np.ndarray:
    """Draw one image of one patient.

    `kind` is one of KINDS ("IM" and "NORMAL2-IM" are normal), `number` the patient's within the kind, `image`
    counts from 0 within the patient, `shift` moves the exposure, 0 none to 1 far, `aspect` is width / height, by default
    about 1.25 for normal and 1.48 for pneumonia, with an R or L beside the patient; an image of another shape has no such mark,
    for whoever asks for it sets its own. Returns uint8 (h, w), 220 to 520 px wide, 0 black to 255 white. Raises ValueError on another kind or a number below 0.
    """
    patient = np.random.default_rng([seed, KINDS.index(kind), number])
    rng = np.random.default_rng([seed, KINDS.index(kind), number, image + 1])
    a, disease, sick = _anatomy(patient), _disease(patient, kind), kind in KINDS[:2]
    usual = (1.48 if sick else 1.25) * float(np.exp(patient.normal(0, 0.15) + rng.normal(0, 0.02)))
    marked, aspect = aspect is None, usual if aspect is None else aspect
    width = round(rng.uniform(220, 480) if sick else rng.uniform(270, 520))
    g = _grid(rng, a, aspect)
    air, heart = _lungs(g, a)
    air = air * _aerated(g, a, disease, rng)
    dense = _flesh(g, a, air * (1 - 0.93 * heart)) + _bones(g, a)
    dense += 0.2 * (1 + disease.texture) * _vessels(g, a, rng) * air * (1 - heart)
    shown = _expose(g, dense, rng, shift).resize((width, round(width / aspect)), Image.Resampling.BICUBIC)
    if marked:
        _mark(shown, rng)
    grain = rng.standard_normal(shown.size[::-1], dtype=np.float32) * rng.uniform(1.5, 5) * (1 + 0.3 * shift)
    return np.clip(np.asarray(shown) + grain, 0, 255).round().astype(np.uint8)
