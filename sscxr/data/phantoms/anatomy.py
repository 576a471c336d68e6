"""A procedural thorax: the attenuation of an X-ray beam through an artificial patient.

Lengths are in half-widths of the inner rib cage: x runs from -1 (the patient's right, on the viewer's left) to
1, y downwards from 0 at the lungs' apices to `Patient.lung_height` at the costophrenic angles. Attenuation is
1 for a chest's full depth of soft tissue. All constants here are ours, set by eye against real radiographs.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sscxr.data.phantoms.shapes import Field, ball, chord, ramp, sided

_CAGE_STEPS = 4096
# Half-width of the inner rib cage from the apex (0) to the costophrenic angle, and beyond, as a table.
_CAGE = (1 - (1 - np.minimum(np.arange(_CAGE_STEPS + 1) / (0.82 * _CAGE_STEPS), 1)) ** 2.25) ** 0.55
_CAGE = _CAGE.astype(np.float32)


@dataclass(frozen=True)
class Patient:
    """Proportions that are the same in all images of one patient (lengths: see the module)."""

    child: bool
    age: int
    sex: str
    half_width_mm: float
    lung_height: float
    wall: float
    heart: float
    heart_tilt: float
    aorta: float
    thymus: float
    breasts: float
    rib_spacing: float
    rib_slope: float
    bone: float
    vessels: float
    scoliosis: float
    domes: tuple[float, float]


@dataclass(frozen=True)
class Pose:
    """How one image was taken: the view, the pixels' places on the patient, the depth of the breath."""

    view: str
    height: int
    width: int
    scale: float
    shift: tuple[float, float]
    roll: float
    breath: float
    turn: float
    arms: float

    def grid(self) -> tuple[Field, Field]:
        """Return each pixel's place on the patient: x and y, float32 [H, W]."""
        rows = (np.arange(self.height, dtype=np.float32) - (self.height - 1) / 2)[:, None] * self.scale
        columns = (np.arange(self.width, dtype=np.float32) - (self.width - 1) / 2)[None] * self.scale
        sin, cos = math.sin(self.roll), math.cos(self.roll)
        x = columns * cos - rows * sin + self.shift[0]
        y = columns * sin + rows * cos + self.shift[1]
        return x.astype(np.float32), y.astype(np.float32)


@dataclass
class Thorax:
    """The maps of one image, float32 [H, W]; findings change `air`, devices and bones add to `dense`.

    Attributes:
        x, y: each pixel's place on the patient.
        lung: 1 inside the lungs, including behind the heart, 0 outside.
        inside: distance to the chest wall, for findings at the lungs' edge.
        air: share of the depth that is air, 0..1.
        body: depth of the body.
        dense: attenuation by bone and the like, beyond soft tissue.
    """

    x: Field
    y: Field
    lung: npt.NDArray[np.bool_]
    inside: Field
    air: Field
    body: Field
    dense: Field

    def attenuation(self) -> Field:
        """Return float32 [H, W]: 0 in open air, about 1 behind the heart, more behind bone and the abdomen."""
        return self.body * (1 - 0.72 * self.air) + self.dense


def draw_patient(rng: np.random.Generator, child: bool) -> Patient:
    """Draw a patient with an age, a sex and matching proportions."""
    age = int(rng.integers(1, 13)) if child else int(np.clip(rng.normal(56, 17), 18, 95))
    sex = "F" if rng.random() < 0.48 else "M"
    young = float(np.clip((13 - age) / 12, 0, 1)) if child else 0.0
    frailty = max(0.0, (age - 50) / 45)
    return Patient(
        child=child,
        age=age,
        sex=sex,
        half_width_mm=(66 + 4.2 * age if child else (134 if sex == "F" else 149)) * rng.normal(1, 0.04),
        lung_height=rng.normal(1.42 + 0.2 * (1 - young) if child else 1.95, 0.1),
        wall=abs(rng.normal(0.13 if child else 0.2, 0.08)) + 0.06,
        heart=rng.normal(0.98 + 0.16 * young + 0.08 * frailty, 0.08),
        heart_tilt=rng.normal(0.75, 0.12),
        aorta=max(0.1, rng.normal(0.35 if child else 0.75 + 0.4 * frailty, 0.15)),
        thymus=young * rng.uniform(0, 1) if age < 5 else 0.0,
        breasts=rng.uniform(0.05, 0.2) if sex == "F" and not child else 0.0,
        rib_spacing=rng.normal(0.2, 0.01),
        rib_slope=rng.normal(0.06 if child else 0.16, 0.05),
        bone=rng.normal(0.85 if child else 1 - 0.25 * frailty, 0.12),
        vessels=rng.normal(1, 0.2),
        scoliosis=rng.normal(0, 0.03),
        domes=(rng.normal(0.26, 0.05), rng.normal(0.21, 0.05)),
    )


def draw_pose(rng: np.random.Generator, patient: Patient, *, size: int, aspect: float, bedside: bool) -> Pose:
    """Draw a pose for an image whose longer side is `size` px and whose width is `aspect` times its height."""
    height, width = (size, round(size * aspect)) if aspect <= 1 else (round(size / aspect), size)
    breath = rng.normal(0.9, 0.07) if bedside or patient.child else rng.normal(1, 0.05)
    lungs = patient.lung_height * breath
    margin = rng.uniform(0.97, 1.2 if bedside or patient.child else 1.1)
    scale = max(2.2 / width, (lungs + 0.36) / height) * margin
    shift = (rng.normal(0, 0.06), lungs / 2 + rng.normal(0.03, 0.06))
    roll = rng.normal(0, np.deg2rad(4.0 if bedside else 1.5))
    turn = rng.normal(0, 0.06 if bedside or patient.child else 0.025)
    view = "AP" if bedside or patient.child else "PA"
    return Pose(view, height, width, scale, shift, roll, breath, turn, rng.uniform(0, 1))


def thorax(rng: np.random.Generator, patient: Patient, pose: Pose) -> Thorax:
    """Draw the healthy thorax of a patient in a pose."""
    x, y = pose.grid()
    # The spine bends with y; turning the patient about the long axis displaces the front against it.
    bend = patient.scoliosis * np.sin(y * 1.8 + patient.age)
    back, front = x - bend, x - pose.turn
    height = patient.lung_height * pose.breath
    side = np.abs(x)
    cage = _cage(y / height)
    lung, inside, air = _lungs(patient, x, side, y, height, cage)
    heart = _heart(patient, front, y, height)
    air = air * (1 - 0.88 * heart)
    body = _body(patient, pose, side, y, height, cage)
    bones = _ribs(rng, patient, x, side, y, cage) + _spine(patient, back, y)
    bones = bones + _girdle(rng, patient, front, side, y)
    picture = Thorax(x, y, lung, inside, air, body, bones)
    _vessels(rng, patient, picture, height)
    _airways(picture, bend, height)
    _below(rng, patient, picture, height)
    return picture


def _cage(t: Field) -> Field:
    """Return the half-width of the inner rib cage by height `t` (0 apex, 1 costophrenic angle)."""
    index = np.clip(t * _CAGE_STEPS, 0, _CAGE_STEPS).astype(np.int32)
    return _CAGE.take(index)


def _lungs(
    patient: Patient, x: Field, side: Field, y: Field, height: float, cage: Field
) -> tuple[npt.NDArray[np.bool_], Field, Field]:
    """Return the lungs' outline, the distance to their outer edge, and their depth as a share of the body's."""
    t = y / height
    inner = 0.15 + 0.16 * np.exp(-np.clip(t, 0, None) / 0.05)
    dome = sided(x, *patient.domes)
    along = (side - 0.42) / 0.6
    along = np.where(along < 0, along * 0.6, along)
    floor = height - dome * (1 - along * along)
    outer, medial, down = cage - side, side - inner, floor - y
    lung = (outer > 0) & (medial > 0) & (down > 0) & (t > 0)
    depth = chord(outer / 0.45) * chord(medial / 0.14) * chord(down / 0.12)
    depth = depth * (0.62 + 0.38 * ramp(t / 0.45))
    return lung, outer, depth * lung


def _heart(patient: Patient, x: Field, y: Field, height: float) -> Field:
    """Return the depth of heart, vessels and a child's thymus, 0..1. The apex points to the viewer's right."""
    size, low = patient.heart, height
    left = ball(x, y, (0.17 * size, 0.72 * low), (0.45 * size, 0.31 * size), patient.heart_tilt)
    right = ball(x, y, (-0.07, 0.7 * low), (0.22 * size, 0.3 * size))
    trunk = ball(x, y, (0.03, 0.42 * low), (0.21, 0.36 * low))
    knob = ball(x, y, (0.14, 0.29 * low), (0.13 * patient.aorta, 0.13 * patient.aorta))
    heart = np.maximum(np.maximum(left, right), np.maximum(trunk, knob))
    if patient.thymus:
        heart = np.maximum(heart, 0.55 * patient.thymus * ball(x, y, (-0.02, 0.34 * low), (0.42, 0.3 * low)))
    return np.minimum(heart * 1.5, 1)


def _body(patient: Patient, pose: Pose, side: Field, y: Field, height: float, cage: Field) -> Field:
    """Return the depth of the body: trunk, neck, shoulders and arms."""
    shoulder = 1.5 if patient.child else 1.6
    trunk = 1 + patient.wall + 0.05 * ramp((y - height) / 0.5)
    neck = 0.34 if patient.child else 0.42
    girdle = neck + (shoulder - neck) * ramp((y + 0.5) / 0.62)
    edge = girdle + (trunk - girdle) * ramp((y - 0.2) / 0.4)
    depth = 0.5 + 0.42 * ramp((y + 0.45) / 0.9)
    depth = depth + 0.22 * ramp((y - height * 0.75) / (height * 0.5))
    round_ = np.clip(1 - (side / edge) ** 2, 0, None)
    body = depth * np.sqrt(round_)
    # Outside the cage the beam passes only through skin, fat and muscle.
    body = body * (1 - 0.22 * ramp((side - cage) / 0.25))
    lean = 0.1 + 0.5 * pose.arms
    middle = shoulder - 0.12 + lean * (y - 0.15)
    arm = np.clip(1 - ((side - middle) / 0.25) ** 2, 0, None) * ramp((y - 0.0) / 0.35)
    bone = np.clip(1 - ((side - middle) / 0.075) ** 2, 0, None) * ramp((y - 0.1) / 0.2)
    limb = 0.5 * np.sqrt(arm) + 0.25 * patient.bone * np.sqrt(bone)
    deepest: Field = np.maximum(body, limb)
    return deepest


def _ribs(rng: np.random.Generator, patient: Patient, x: Field, side: Field, y: Field, cage: Field) -> Field:
    """Return the attenuation by the ribs. The field `number` counts ribs along the cage, so one pass draws all."""
    spacing, slope = patient.rib_spacing, patient.rib_slope
    jitter = rng.normal(0, 0.05, 48).astype(np.float32)
    near = np.clip(side, 0, 1.1)
    shape = slope * near + 0.26 * near * near * near - 0.06 * np.sin(near * 4)
    back = _tubes((y - shape) / spacing + sided(x, 0.5, 0.53), jitter, 0.25)
    reach = np.clip(1 - near, 0, 1)
    shape = 0.62 * reach - 0.22 * reach * reach + 0.05
    front = _tubes((y - shape) / spacing + 0.1, jitter[::-1], 0.3)
    front = front * ramp((side - 0.36) / 0.2)
    rim = 1 + 1.1 * ramp(1 - np.abs(cage - side) / 0.09)
    within = ramp((cage + 0.03 - side) / 0.03) * ramp((y + 0.03) / 0.06)
    fade = 1 - 0.85 * ramp((y - patient.lung_height * 0.68) / 0.45)
    back = back * ramp((side - 0.08) / 0.05)
    return 0.08 * patient.bone * within * (back * rim + 0.6 * front) * fade


def _tubes(number: Field, jitter: Field, half: float) -> Field:
    """Return profiles of tubes with a denser cortex, at the whole numbers of `number`, of half-thickness `half`."""
    index = np.floor(number)
    away = number - index - 0.5 + jitter[np.clip(index, -20, 20).astype(np.int64) + 20]
    away = np.abs(away) / half
    return ramp((1 - away) / 0.35) * (0.75 + 0.4 * away)


def _spine(patient: Patient, x: Field, y: Field) -> Field:
    """Return the attenuation by the vertebrae; the discs are thin darker bands."""
    phase = np.abs((y / (patient.rib_spacing * 1.03)) % 1 - 0.5) * 2
    discs = 1 - 0.45 * ramp((phase - 0.78) / 0.2)
    width = (0.105 if patient.child else 0.12) + 0.02 * ramp(phase)
    return 0.12 * patient.bone * ramp((width - np.abs(x)) / 0.035) * discs


def _girdle(rng: np.random.Generator, patient: Patient, x: Field, side: Field, y: Field) -> Field:
    """Return the attenuation by clavicles, shoulder blades and the heads of the humeri."""
    lift, bow = rng.normal(0.16, 0.05), rng.normal(0.045, 0.01)
    line = 0.14 - lift * (side - 0.1)
    line = line + bow * np.sin((side - 0.1) * 5.2) + 0.04 * x
    clavicle = np.sqrt(np.clip(1 - ((y - line) / 0.052) ** 2, 0, None))
    clavicle = clavicle * ramp((side - 0.1) / 0.05) * ramp((1.3 - side) / 0.1)
    border = rng.uniform(0.82, 1.0) + 0.14 * (y - 0.2)
    blade = ramp((side - border) / 0.04) * ramp((y - 0.05) / 0.1)
    blade = blade * ramp((0.95 - y + (border - side)) / 0.1)
    blade = blade * ramp((border + 0.35 - side - 0.3 * y) / 0.1)
    head = ball(side, y, (1.38, 0.13), (0.17, 0.17))
    girdle: Field = patient.bone * (0.15 * clavicle + 0.05 * blade + 0.2 * head)
    return girdle


def _vessels(rng: np.random.Generator, patient: Patient, picture: Thorax, height: float) -> None:
    """Fill the lungs with vessels that run out of the hila: noise in polar coordinates around each hilum."""
    # At half the resolution: vessels are smooth at this scale, and the arc tangent is slow.
    x, y = picture.x[::2, ::2], picture.y[::2, ::2]
    dx, dy = np.abs(x) - 0.17, y - height * 0.46
    radius = np.sqrt(dx * dx + dy * dy)
    angle = np.clip((np.arctan2(dy, dx) + math.pi) * (54 / (2 * math.pi)) + radius * 3, 0, 61.9)
    ring = np.clip(np.sqrt(radius) * 9, 0, 22.9)
    table = rng.standard_normal(2 * 24 * 64, dtype=np.float32)
    row, column = ring.astype(np.int32), angle.astype(np.int32)
    down, along = (ring - row).astype(np.float32), (angle - column).astype(np.float32)
    start = (x < 0).astype(np.int32) * (24 * 64) + row * 64 + column
    upper = table[start] * (1 - along) + table[start + 1] * along
    lower = table[start + 64] * (1 - along) + table[start + 65] * along
    streaks = np.clip(upper * (1 - down) + lower * down, 0, 2.5)
    tissue = np.clip(0.36 * patient.vessels * np.exp(-radius / 0.42) * (0.25 + streaks), 0, 0.9)
    for axis, side in enumerate(picture.x.shape):
        tissue = np.repeat(tissue, 2, axis)
        tissue = ((tissue + np.roll(tissue, 1, axis)) / 2).take(np.arange(side), axis)
    picture.air = picture.air * (1 - tissue)


def _airways(picture: Thorax, bend: Field, height: float) -> None:
    """Draw trachea and main bronchi: air in front of the spine, so less body."""
    x, y = picture.x - 0.5 * bend, picture.y
    carina = height * 0.36
    trachea = np.clip(1 - (x / 0.06) ** 2, 0, None) * ramp((carina - y) / 0.06)
    branch = sided(x, 0.9, 1.25)
    away = np.abs(x) - branch * (y - carina)
    bronchi = np.clip(1 - (away / 0.05) ** 2, 0, None) * ramp((y - carina) / 0.05)
    bronchi = bronchi * ramp((carina + 0.16 - y) / 0.08)
    picture.body = picture.body * (1 - 0.26 * np.sqrt(trachea) - 0.1 * np.sqrt(bronchi))


def _below(rng: np.random.Generator, patient: Patient, picture: Thorax, height: float) -> None:
    """Draw gas in the stomach and the gut below the diaphragm, and the breasts' shadows."""
    x, y, low = picture.x, picture.y, height
    gas = np.zeros_like(x)
    if rng.random() < 0.6:
        at = (rng.uniform(0.3, 0.6), low + rng.uniform(0.02, 0.12))
        gas = ball(x, y, at, (rng.uniform(0.1, 0.26), rng.uniform(0.05, 0.13)), rng.normal(0, 0.3))
    for _ in range(int(rng.integers(0, 5 if patient.child else 3))):
        at = (rng.uniform(-0.7, 0.8), low + rng.uniform(0.2, 0.6))
        gas = np.maximum(gas, 0.7 * ball(x, y, at, (rng.uniform(0.06, 0.16), rng.uniform(0.05, 0.1))))
    picture.body = picture.body * (1 - 0.3 * gas * ~picture.lung)
    if patient.breasts:
        at, radii = (0.62, 0.68 * low), (0.48, 0.36)
        picture.body = picture.body + patient.breasts * ball(np.abs(x), y, at, radii, 0.25)
