"""Soft shapes over pixel grids, for the phantoms. Every function keeps float32."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.floating[Any]]


def noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> Field:
    """Return smooth noise, float32 [H, W] of about unit variance, with `cells` bumps along the longer side."""
    longer = max(shape)
    rows, columns = (max(2, round(cells * side / longer)) for side in shape)
    grid = rng.standard_normal((rows + 2, columns + 2), dtype=np.float32)
    for axis, (side, count) in enumerate(zip(shape, (rows, columns), strict=True)):
        place = np.linspace(0.5, count + 0.5, side, dtype=np.float32)
        first = place.astype(np.int64)
        part = (place - first).astype(np.float32)
        part = part * part * (3 - 2 * part)
        part = part[:, None] if axis == 0 else part[None]
        grid = grid.take(first, axis) * (1 - part) + grid.take(first + 1, axis) * part
    return grid * 1.6


def chord(distance: Field) -> Field:
    """Return the depth of a rounded body by the distance from its edge: 0 up to the edge, 1 from distance 1 on."""
    inside = np.clip(distance, 0, 1)
    return np.sqrt(inside * (2 - inside))


def ramp(value: Field) -> Field:
    """Return 0 below 0, 1 above 1, and a smooth ramp between."""
    clipped = np.clip(value, 0, 1)
    return clipped * clipped * (3 - 2 * clipped)


def sided(x: Field, right: float, left: float) -> Field:
    """Return `right` on the patient's right (the viewer's left), `left` on the other side."""
    return np.where(x < 0, np.float32(right), np.float32(left))


def ball(x: Field, y: Field, at: tuple[float, float], radii: tuple[float, float], tilt: float = 0.0) -> Field:
    """Return the depth of an ellipsoid, 1 at its centre and 0 outside."""
    dx, dy = x - at[0], y - at[1]
    sin, cos = math.sin(tilt), math.cos(tilt)
    along, across = (dx * cos + dy * sin) / radii[0], (dy * cos - dx * sin) / radii[1]
    return np.sqrt(np.clip(1 - along * along - across * across, 0, None))
