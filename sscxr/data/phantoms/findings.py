"""Findings and devices of a phantom's thorax: opacities, fluid, tubes and lines. Strengths are ours.

Opacities replace air and so show only within the lungs. They range from faint to obvious, and healthy lungs get
faint haze too, so that a label cannot be read from one pixel's brightness.
"""

from collections.abc import Callable

import numpy as np

from sscxr.data.phantoms.anatomy import Patient, Pose, Thorax
from sscxr.data.phantoms.shapes import Field, ball, noise, ramp, sided

LABELS = ("normal", "pneumonia", "covid19", "other")


def add_finding(
    rng: np.random.Generator, label: str, patient: Patient, pose: Pose, picture: Thorax
) -> list[str]:
    """Draw the finding `label` into the picture and return its names as in a report."""
    haze(rng, picture)
    height = patient.lung_height * pose.breath
    if label == "pneumonia":
        return _pneumonia(rng, picture, height)
    if label == "covid19":
        return _covid(rng, picture, height)
    if label == "other":
        kinds: list[Callable[[np.random.Generator, Thorax, float], list[str]]]
        kinds = [_effusion, _nodules, _cardiomegaly, _pneumothorax]
        return kinds[int(rng.integers(len(kinds)))](rng, picture, height)
    return ["No Finding"]


def haze(rng: np.random.Generator, picture: Thorax) -> None:
    """Add the uneven transparency of any lung: skin folds, muscle, scatter."""
    amount = rng.uniform(0.02, 0.08)
    picture.air = picture.air * np.clip(1 - amount * (1 + noise(rng, picture.x.shape, 6)), 0, 1)


def _opacify(picture: Thorax, share: Field) -> None:
    picture.air = picture.air * (1 - np.clip(share, 0, 0.95))


def _where(side: int, place: float) -> str:
    return f"{'right' if side < 0 else 'left'} {'upper' if place < 0.4 else 'middle' if place < 0.62 else 'lower'}"


def _pneumonia(rng: np.random.Generator, picture: Thorax, height: float) -> list[str]:
    """Draw one to three consolidations with ragged edges."""
    names = []
    texture = noise(rng, picture.x.shape, 14)
    for _ in range(1 + int(rng.random() < 0.4) + int(rng.random() < 0.15)):
        side, place = (-1 if rng.random() < 0.55 else 1), rng.uniform(0.28, 0.85)
        at = (side * rng.uniform(0.35, 0.75), place * height)
        radii = (rng.uniform(0.22, 0.6), rng.uniform(0.2, 0.5))
        blob = ball(picture.x, picture.y, at, radii, rng.uniform(-0.7, 0.7))
        strength = float(np.clip(rng.lognormal(-0.6, 0.4), 0.2, 0.95))
        _opacify(picture, strength * ramp(blob * blob * (1.1 + 0.35 * texture)))
        names.append(f"Consolidation {_where(side, place)}")
    if rng.random() < 0.15:
        names += _effusion(rng, picture, height)
    return names


def _covid(rng: np.random.Generator, picture: Thorax, height: float) -> list[str]:
    """Draw patchy ground glass on both sides, at the periphery and mostly low."""
    rim = 1 - 0.85 * ramp((picture.inside - 0.1) / rng.uniform(0.25, 0.5))
    low = 0.35 + 0.65 * ramp(picture.y / height * 2 - 0.55)
    patches = ramp(noise(rng, picture.x.shape, 7) * 0.6 + rng.uniform(0.3, 0.8))
    balance = sided(picture.x, rng.uniform(0.6, 1), rng.uniform(0.6, 1))
    strength = float(np.clip(rng.lognormal(-0.55, 0.35), 0.22, 0.9))
    _opacify(picture, strength * rim * low * patches * balance)
    return ["Ground-glass opacity bilateral peripheral"]


def _effusion(rng: np.random.Generator, picture: Thorax, height: float) -> list[str]:
    """Draw fluid in one costophrenic angle, with a meniscus that rises towards the chest wall."""
    side = -1 if rng.random() < 0.5 else 1
    level = height * rng.uniform(0.62, 0.93) - 0.3 * np.clip(np.abs(picture.x), 0, 1) ** 3
    fluid = ramp((picture.y - level) / 0.1) * (picture.x * side > 0)
    _opacify(picture, rng.uniform(0.55, 0.95) * fluid)
    return [f"Effusion {'right' if side < 0 else 'left'}"]


def _nodules(rng: np.random.Generator, picture: Thorax, height: float) -> list[str]:
    """Draw one to four round nodules."""
    for _ in range(int(rng.integers(1, 5))):
        at = (float(rng.choice((-1, 1))) * rng.uniform(0.3, 0.8), rng.uniform(0.2, 0.85) * height)
        radius = rng.uniform(0.05, 0.11)
        _opacify(picture, rng.uniform(0.4, 0.8) * ball(picture.x, picture.y, at, (radius, radius)) ** 2)
    return ["Nodule"]


def _cardiomegaly(rng: np.random.Generator, picture: Thorax, height: float) -> list[str]:
    """Draw a heart that is much too wide, mainly to the left."""
    at, radii = (0.2, 0.72 * height), (rng.uniform(0.6, 0.75), rng.uniform(0.36, 0.45))
    _opacify(picture, np.minimum(1.6 * ball(picture.x, picture.y, at, radii, 0.5), 0.88))
    return ["Cardiomegaly"]


def _pneumothorax(rng: np.random.Generator, picture: Thorax, height: float) -> list[str]:
    """Draw air outside one lung: a dark rim without vessels, and the lung within it a little denser."""
    side = -1 if rng.random() < 0.5 else 1
    edge = picture.inside - rng.uniform(0.1, 0.3) * (1 - picture.y / (1.2 * height))
    here = (picture.x * side > 0) & picture.lung
    bare = here & (edge < 0)
    picture.air = np.where(bare, 0.4 + 0.55 * picture.air, picture.air)
    pleura = np.clip(1 - np.abs(edge) / 0.015, 0, 1) * here
    picture.dense = picture.dense + 0.04 * pleura
    _opacify(picture, np.float32(0.08) * (here & ~bare))
    return [f"Pneumothorax {'right' if side < 0 else 'left'}"]


def add_devices(rng: np.random.Generator, picture: Thorax, height: float, burden: float) -> list[str]:
    """Draw ECG leads, tubes and lines; `burden` (0..1) is the probability of each."""
    names = []
    if rng.random() < burden:
        names.append("ECG leads")
        for _ in range(int(rng.integers(2, 5))):
            start = np.array([rng.uniform(-0.9, 0.9), rng.uniform(0.0, 1.1) * height])
            end = np.array([rng.choice((-1.5, 1.5)), rng.uniform(-0.4, 0.6) * height])
            _wire(picture, start, rng.normal(0, 0.35, 2) + (start + end) / 2, end, 0.14)
            pad = ball(picture.x, picture.y, (start[0], start[1]), (0.05, 0.05))
            picture.dense = picture.dense + np.float32(0.16) * (pad > 0.3)
    middle = np.array([rng.normal(0, 0.015), -0.6])
    if rng.random() < burden * 0.5:
        names.append("Endotracheal tube")
        for offset in (-0.025, 0.025):
            aside = np.array([offset, 0.0])
            above, below = middle + aside, aside + np.array([0.0, 0.27 * height])
            _wire(picture, above, above + np.array([0, 0.5]), below, 0.12)
    if rng.random() < burden * 0.5:
        names.append("Gastric tube")
        _wire(picture, middle, np.array([-0.02, height]), np.array([0.4, height * 1.08]), 0.13)
    if rng.random() < burden * 0.6:
        names.append("Central venous catheter")
        start = np.array([-rng.uniform(0.25, 0.9), rng.uniform(-0.4, 0.05)])
        _wire(picture, start, np.array([-0.12, 0.05]), np.array([-0.1, 0.5 * height]), 0.12)
    if rng.random() < burden * 0.08:
        names.append("Pacemaker")
        at = np.array([rng.uniform(0.6, 0.8), rng.uniform(0.2, 0.35)])
        case = ball(picture.x, picture.y, (at[0], at[1]), (0.15, 0.12))
        picture.dense = picture.dense + np.float32(0.5) * (case > 0.25)
        _wire(picture, at, np.array([0.0, 0.1]), np.array([0.15, 0.85 * height]), 0.25)
    return names


def _wire(picture: Thorax, start: Field, bend: Field, end: Field, strength: float) -> None:
    """Draw a thin wire along a quadratic Bézier curve through patient coordinates, in place."""
    rows, columns = picture.x.shape
    along = np.linspace(0, 1, 3 * max(rows, columns))[:, None]
    points = (1 - along) ** 2 * start + 2 * along * (1 - along) * bend + along**2 * end
    # The grid is an affine map of the pixels: invert it from three of its corners.
    origin = np.array([picture.x[0, 0], picture.y[0, 0]], dtype=np.float64)
    right = np.array([picture.x[0, -1], picture.y[0, -1]]) - origin
    down = np.array([picture.x[-1, 0], picture.y[-1, 0]]) - origin
    away = points - origin
    column = (away @ right) / (right @ right) * (columns - 1)
    row = (away @ down) / (down @ down) * (rows - 1)
    weight = np.zeros(rows * columns)
    for i in (0, 1):
        for j in (0, 1):
            r, c = np.floor(row).astype(np.int64) + i, np.floor(column).astype(np.int64) + j
            inside = (r >= 0) & (r < rows) & (c >= 0) & (c < columns)
            share = (1 - np.abs(row - r)) * (1 - np.abs(column - c))
            weight += np.bincount((r * columns + c)[inside], share[inside], rows * columns)
    line = np.minimum(weight.reshape(rows, columns), 1).astype(np.float32)
    picture.dense = picture.dense + strength * line
