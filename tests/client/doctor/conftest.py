"""Chests that hang right."""

import numpy as np
import numpy.typing as npt
import pytest

from sscxr.data.phantoms import phantom
from sscxr.data.pixels import posture

COUNT = 60


@pytest.fixture(scope="session")
def upright() -> npt.NDArray[np.uint8]:
    """uint8 [COUNT, 96, 96] that the posture detector has nothing to say about."""
    images: list[npt.NDArray[np.uint8]] = []
    seed = 0
    while len(images) < COUNT:
        image = phantom.draw(np.random.default_rng([5, seed]), size=96)[0]
        seed += 1
        seen = posture.look(image)
        if image.shape == (96, 96) and not seen.problems() and not seen.doubts():
            images.append(np.rint(image * 255).astype(np.uint8))
    return np.stack(images)
