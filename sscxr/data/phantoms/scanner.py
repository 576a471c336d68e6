"""How a site's machine shows a thorax: tone curve, noise, blur, collimation, side markers. Constants are ours.

Two hospitals' pictures of one patient differ as much as those of two patients in one hospital. Federated learning
has to cope with that, so every phantom site gets its own style.
"""

from dataclasses import dataclass

import numpy as np

from sscxr.data.phantoms.shapes import Field, ramp

MAKERS = ("Northlight Imaging", "Cassini Medical", "Brandt & Vogel", "Aster Roentgen", "Kestrel Systems")
# 5 x 7 dot glyphs, a number per row, for technicians' marks.
_GLYPHS = {
    "L": (16, 16, 16, 16, 16, 16, 31),
    "R": (30, 17, 17, 30, 20, 18, 17),
    "A": (14, 17, 17, 31, 17, 17, 17),
    "P": (30, 17, 17, 30, 16, 16, 16),
    "O": (14, 17, 17, 17, 17, 17, 14),
    "T": (31, 4, 4, 4, 4, 4, 4),
    "B": (30, 17, 17, 30, 17, 17, 30),
    "E": (31, 16, 16, 30, 16, 16, 31),
    " ": (0, 0, 0, 0, 0, 0, 0),
}


@dataclass(frozen=True)
class Style:
    """A site's machine and habits.

    Attributes:
        modality: CR or DX.
        photometric: MONOCHROME1 (high values are dark) or MONOCHROME2.
        bits: bits stored, 8 to 14.
        window: `tags` (one window, the stored range is wider), `two` (a second one, for bone) or `none`.
        gamma, gain, detail: tone curve; strength of local contrast.
        noise, blur: standard deviation of the noise in grey levels of 0..1; blur in px at 256 px.
        collimation: how often the shutters show. tilt: how often the cassette does.
        aspect: width over height.
        marker: the marker's side, L, R or both. boxed: whether the marker is dark on a bright plate.
        bedside: share of images taken in bed.
    """

    maker: str
    modality: str
    photometric: str
    bits: int
    window: str
    gamma: float
    gain: float
    detail: float
    noise: float
    blur: float
    collimation: float
    tilt: float
    aspect: float
    marker: str
    boxed: bool
    text: float
    bedside: float


def draw_style(rng: np.random.Generator) -> Style:
    """Draw a machine and its habits."""
    pick = rng.choice
    return Style(
        maker=str(pick(MAKERS)),
        modality=str(pick(["CR", "DX"])),
        photometric=str(pick(["MONOCHROME1", "MONOCHROME2", "MONOCHROME2"])),
        bits=int(pick([8, 10, 12, 12, 14])),
        window=str(pick(["tags", "tags", "two", "none"])),
        gamma=float(rng.uniform(0.75, 1.4)),
        gain=float(rng.uniform(1.2, 2.6)),
        detail=float(rng.uniform(0.0, 0.9)),
        noise=float(rng.uniform(0.003, 0.016)),
        blur=float(rng.uniform(0.0, 0.9)),
        collimation=float(rng.uniform(0, 0.6)),
        tilt=float(rng.uniform(0, 0.3)),
        aspect=float(pick([0.83, 0.83, 1.0, 1.0, 1.2])),
        marker=str(pick(["L", "R", "both"])),
        boxed=bool(rng.random() < 0.3),
        text=float(rng.uniform(0, 0.5)),
        bedside=float(rng.uniform(0.1, 0.9)),
    )


def expose(rng: np.random.Generator, style: Style, attenuation: Field, view: str) -> Field:
    """Return this machine's picture of an attenuation map, float32 [H, W] in 0..1, bone bright."""
    size = max(attenuation.shape)
    if style.blur:
        attenuation = _smooth(attenuation, style.blur * size / 256 * rng.uniform(0.7, 1.4))
    local = _coarse(attenuation, max(4, size // 16))
    attenuation = attenuation + (style.detail * rng.uniform(0.6, 1.3)) * (attenuation - local)
    centre = np.median(attenuation[::4, ::4]) - rng.normal(0.03, 0.06)
    gain = style.gain * rng.normal(1, 0.1)
    # A sigmoid, as in the look-up tables of digital machines.
    bright = 1 / (1 + np.exp(gain * (centre - attenuation) * 2))
    image = bright ** (style.gamma * rng.normal(1, 0.06))
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    # Fewer photons pass dense parts, so these are noisier.
    image = image + (style.noise * rng.uniform(0.6, 1.6)) * grain * (0.5 + bright)
    lowest, highest = np.percentile(image[::3, ::3], (1, 99.9))
    image = (image - lowest) / max(highest - lowest, 1e-3)
    if rng.random() < style.collimation:
        image = image * _shutters(rng, image.shape, style.tilt)
    _mark(rng, style, image, view)
    shown: Field = np.clip(image, 0, 1).astype(np.float32)
    return shown


def _smooth(image: Field, sigma: float) -> Field:
    """Blur by a Gaussian of a few pixels, with repeated edges."""
    reach = max(1, int(2.5 * sigma + 0.5))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / max(sigma, 1e-3)) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    for axis in (0, 1):
        padding = [(reach, reach) if i == axis else (0, 0) for i in (0, 1)]
        wide, length = np.pad(image, padding, mode="edge"), image.shape[axis]
        parts = (wide[i : i + length] if axis == 0 else wide[:, i : i + length] for i in range(2 * reach + 1))
        image = np.sum([tap * part for tap, part in zip(taps, parts, strict=True)], axis=0, dtype=np.float32)
    return image


def _coarse(image: Field, cell: int) -> Field:
    """Return local means over cells, interpolated to the image's size."""
    rows, columns = (max(2, side // cell) for side in image.shape)
    height, width = image.shape
    top = image[: height // rows * rows, : width // columns * columns]
    means: Field = top.reshape(rows, height // rows, columns, width // columns).mean((1, 3), dtype=np.float32)
    for axis, (side, count) in enumerate(zip(image.shape, (rows, columns), strict=True)):
        place = np.clip((np.arange(side, dtype=np.float32) + 0.5) * count / side - 0.5, 0, count - 1)
        first = np.minimum(place.astype(np.int64), count - 2)
        part = (place - first).astype(np.float32)
        part = part[:, None] if axis == 0 else part[None]
        means = means.take(first, axis) * (1 - part) + means.take(first + 1, axis) * part
    return means


def _shutters(rng: np.random.Generator, shape: tuple[int, ...], tilt: float) -> Field:
    """Return 1 within the collimated field, 0 beyond it; the field may be tilted."""
    rows = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    columns = np.linspace(-1, 1, shape[1], dtype=np.float32)[None]
    angle = rng.normal(0, 0.05) if rng.random() < tilt else 0
    along, across = columns + angle * rows, rows - angle * columns
    sides = 1 - rng.uniform(0.0, 0.14, 4).astype(np.float32)
    edge = np.minimum(
        np.minimum(sides[0] - along, sides[1] + along), np.minimum(sides[2] - across, sides[3] + across)
    )
    return ramp(edge / 0.012 + 0.5)


def _mark(rng: np.random.Generator, style: Style, image: Field, view: str) -> None:
    """Burn in the side marker, at the patient's side that it names, and sometimes a word."""
    size = max(image.shape)
    for side in ("R", "L") if style.marker == "both" else (style.marker,):
        dot = max(1, round(size / 256 * rng.uniform(1.2, 2.4)))
        place = rng.uniform(0.03, 0.12) if side == "R" else rng.uniform(0.84, 0.92)
        _write(image, side, dot, rng.uniform(0.03, 0.2), place, style.boxed)
    if rng.random() < style.text:
        word = "AP PORTABLE" if view == "AP" and rng.random() < 0.5 else view
        dot = max(1, round(size / 256 * rng.uniform(0.8, 1.3)))
        _write(image, word, dot, rng.choice([0.02, 0.9]), rng.uniform(0.02, 0.6), False)


def _write(image: Field, word: str, dot: int, top: float, left: float, boxed: bool) -> None:
    """Burn a word of `_GLYPHS` into the image, in place; parts beyond the image are cut off."""
    rows = [" ".join(f"{_GLYPHS[letter][row]:05b}" for letter in word) for row in range(7)]
    dots = np.array([[character == "1" for character in row] for row in rows])
    if boxed:
        dots = ~np.pad(dots, 2)
    stamp = np.repeat(np.repeat(dots, dot, 0), dot, 1)
    row, column = int(top * image.shape[0]), int(left * image.shape[1])
    target = image[row : row + stamp.shape[0], column : column + stamp.shape[1]]
    stamp = stamp[: target.shape[0], : target.shape[1]]
    if boxed:
        target[:] = 0
    target[stamp] = 1
