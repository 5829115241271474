"""The thirteen findings as changes of density, each with the region it takes.

A painter takes the chest, the lesion's place and its contrast and gives (change, region): ``change`` float32 [h, w] to
add to the density, ``region`` bool [h, w]. The region does not depend on the contrast and holds nearly all the change.
Contrast scales brightness for shadows and shape for widened silhouettes.
"""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from repgls_jax.phantom import anatomy
from repgls_jax.phantom.anatomy import Chest, segment, step, stroke

Painted = tuple[np.ndarray, np.ndarray]
REGION_LEVEL = 0.2  # a pixel belongs to the region from this share of the shadow's peak up


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a lesion lies: ``side`` -1 the patient's right, 1 left; ``zone`` 0 upper, 1 mid, 2 lower; else 0..1."""

    side: int
    bilateral: bool
    zone: int
    across: float
    along: float
    size: float
    more: np.ndarray


def place_of(name: str, u: np.ndarray) -> Place:
    """The place that the uniforms ``u`` [PLACE_DRAWS] stand for."""
    bilateral = bool(u[1] < BILATERAL.get(name, 0.0))
    low, mid = ZONES.get(name, (0.3, 0.65))
    zone = 0 if u[2] < low else 1 if u[2] < mid else 2
    return Place(-1 if u[0] < 0.55 else 1, bilateral, zone, float(u[3]), float(u[4]), float(u[5]), u[6:])


BILATERAL = {"Pleural Effusion": 0.3, "Pneumonia": 0.25, "Lung Opacity": 0.2, "Atelectasis": 0.25, "Edema": 1.0}
# Shares of the upper zone, and of the upper and middle zones together.
ZONES = {"Consolidation": (0.25, 0.5), "Pneumonia": (0.15, 0.45), "Lung Opacity": (0.2, 0.5), "Fracture": (0.15, 0.6)}
_ZONE_Y = (-0.42, -0.08, 0.22)


def centre(chest: Chest, place: Place, side: int, inner: float = 0.3, outer: float = 0.78) -> tuple[float, float]:
    """A point in the lung of ``side``, in body coordinates."""
    y = _ZONE_Y[place.zone] + 0.2 * (place.along - 0.5)
    wall = float(chest.wall(np.array(y, np.float32)))
    return side * wall * (inner + (outer - inner) * place.across), y


def _sides(place: Place) -> tuple[int, ...]:
    return (place.side, -place.side) if place.bilateral else (place.side,)


def _shadow(shape: np.ndarray, strength: float) -> Painted:
    """A shadow of ``strength`` where ``shape`` (0..1) says, and its region."""
    change = np.float32(strength) * shape
    peak = float(shape.max())
    return change, shape >= max(REGION_LEVEL * peak, 1e-6)


def _blob(chest: Chest, at: tuple[float, float], rx: float, ry: float) -> np.ndarray:
    return np.exp(-(((chest.x - np.float32(at[0])) / rx) ** 2) - ((chest.y - np.float32(at[1])) / ry) ** 2)


def _mottle(chest: Chest, u: np.ndarray, scale: float) -> np.ndarray:
    """A blotchy pattern, 0..1."""
    p = (u[:4] * 2 * np.pi).astype(np.float32)
    x, y = chest.x * np.float32(scale), chest.y * np.float32(scale)
    wave = np.cos(x + 0.6 * y + p[0]) + np.cos(-0.7 * x + y + p[1]) + np.cos(1.3 * x - 0.4 * y + p[2])
    return np.clip(0.5 + wave / 3.0, 0.0, 1.0)


def _widened(chest: Chest, gain: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Density that a silhouette adds where it covers ``gain`` (0..1) more than before."""
    return np.maximum(gain, 0.0) * beside * (np.float32(chest.air) * chest.lung + np.float32(anatomy.CENTRAL))


def cardiomegaly(chest: Chest, place: Place, contrast: float) -> Painted:
    """A wide heart; the region is the whole heart as it would be at its widest."""
    wide = chest.heart(0.5 * contrast)
    change = _widened(chest, wide - chest.heart_now, chest.beside_heart)
    return change, (np.maximum(wide, chest.heart(0.1)) > 0.15) & (chest.y < chest.floor + 0.06)


def enlarged_cardiomediastinum(chest: Chest, place: Place, contrast: float) -> Painted:
    """A wide upper mediastinum."""
    wide = chest.upper(0.16 * contrast)
    band = step(chest.y - np.float32(chest.body.apex), 0.03) * step(0.1 - chest.y, 0.06)
    change = _widened(chest, wide - chest.upper_now, chest.beside_upper) * band
    return change, (np.maximum(wide, chest.upper(0.02)) > 0.15) & (band > 0.2)


def lung_opacity(chest: Chest, place: Place, contrast: float) -> Painted:
    """A large hazy patch."""
    shape = np.zeros_like(chest.x)
    for side in _sides(place):
        at = centre(chest, place, side, 0.4, 0.7)
        shape = np.maximum(shape, _blob(chest, at, 0.17 + 0.06 * place.size, 0.2 + 0.06 * place.size))
    return _shadow(shape * chest.airy, 0.5 * contrast)


def lung_lesion(chest: Chest, place: Place, contrast: float) -> Painted:
    """A round nodule or, when ``size`` is large, a mass."""
    x, y = centre(chest, place, place.side)
    radius = lesion_radius(place)
    r = np.sqrt((chest.x - np.float32(x)) ** 2 + (chest.y - np.float32(y)) ** 2)
    shape = step(radius - r, max(0.012, 0.5 * chest.pixel)) * chest.lung
    return _shadow(shape, 0.85 * contrast)


def lesion_radius(place: Place) -> float:
    """Radius of the nodule or mass; from .1 up reports call it a mass."""
    return 0.065 + 0.085 * place.size**2


def edema(chest: Chest, place: Place, contrast: float) -> Painted:
    """Haze around both hila with streaks (butterfly)."""
    dx, dy = (chest.ax - 0.24) / 0.2, (chest.y - 0.02) / 0.34
    streaks = 0.75 + 0.25 * np.cos(np.float32(26.0) * (chest.y - 0.35 * chest.ax) + np.float32(6.28 * place.more[0]))
    hull = np.exp(-(dx * dx) - dy * dy) * chest.airy
    return np.float32(0.6 * contrast) * streaks * hull, hull > 0.2


def consolidation(chest: Chest, place: Place, contrast: float) -> Painted:
    """A dense lobar block with one sharp edge (the fissure) and air bronchograms."""
    x, y = centre(chest, place, place.side, 0.45, 0.65)
    tilt = (chest.y - np.float32(y)) - 0.25 * (chest.ax - 0.35)
    upper = place.zone == 0
    edge = step((0.1 - tilt) if upper else (tilt + 0.1), 0.012)
    body = _blob(chest, (x, y), 0.3, 0.2 + 0.05 * place.size) ** 0.6
    air = 1.0 - 0.35 * np.clip(np.cos(np.float32(38.0) * (chest.ax + 0.8 * chest.y)), 0, 1) ** 4
    shape = edge * np.clip(1.5 * body - 0.25, 0.0, 1.0) * air * chest.airy * (chest.side == place.side)
    return _shadow(shape, 0.75 * contrast)


def pneumonia(chest: Chest, place: Place, contrast: float) -> Painted:
    """Ill-defined patches, several of them; the region is their common hull."""
    hull = np.zeros_like(chest.x)
    for side in _sides(place):
        hull = np.maximum(hull, _blob(chest, centre(chest, place, side, 0.35, 0.7), 0.2, 0.24))
    hull *= chest.airy
    patches = 0.35 + 0.85 * _mottle(chest, place.more, 30.0) ** 1.5
    return np.float32(0.75 * contrast) * hull * patches, hull > 0.18


def atelectasis(chest: Chest, place: Place, contrast: float) -> Painted:
    """Plates above a raised dome."""
    shape = np.zeros_like(chest.x)
    for side in _sides(place):
        at = chest.side == side
        height = chest.floor - chest.y
        tilt = (place.more[0] - 0.5) * 0.5 * (chest.ax - 0.4)
        plate = stroke(chest, height - (0.1 + 0.08 * place.along) - tilt, 0.024)
        second = stroke(chest, height - (0.19 + 0.1 * place.along) + tilt, 0.018) * (
            0.9 if place.more[1] > 0.5 else 0.0
        )
        reach = np.exp(-(((chest.ax - (0.32 + 0.2 * place.across)) / 0.17) ** 4))
        raised = 0.55 * step(0.075 - height, 0.02)
        shape = np.maximum(shape, np.maximum(np.maximum(plate, second) * reach, raised * reach) * at)
    return _shadow(shape * chest.airy, 0.7 * contrast)


def pneumothorax(chest: Chest, place: Place, contrast: float) -> Painted:
    """A black rim without vessels over the apex, bounded by the thin pleural line."""
    at = (chest.side == place.side) & (chest.y < 0.25)
    depth = 0.1 + 0.1 * place.size
    # Distance from the chest wall, deeper at the apex.
    apex = np.clip((0.05 - chest.y) / 0.6, 0.0, 1.0)
    rim = chest.outer - np.float32(depth) * (0.35 + apex)
    fade = step(0.05 - chest.y, 0.06)
    gap = step(-rim, 0.01) * chest.airy * at * fade
    line = stroke(chest, rim, 0.015) * chest.airy * at * fade
    change = np.float32(contrast) * (0.5 * line - gap * (0.2 + 0.7 * chest.ribs * 0.3))
    return change, (gap > 0.3) | (line > 0.3)


def effusion(chest: Chest, place: Place, contrast: float) -> Painted:
    """A meniscus that fills the costophrenic angle and climbs the wall; the more, the higher."""
    shape = np.zeros_like(chest.x)
    region = np.zeros(chest.x.shape, bool)
    for i, side in enumerate(_sides(place)):
        amount = contrast * (1.0 if i == 0 else 0.75)
        at = chest.side == side
        for level, into in ((amount, shape), (max(amount, 0.35), None)):
            top = chest.body.base - 0.1 - np.float32(0.3 * level)
            climb = np.float32(0.1 + 0.12 * level) * np.exp(-np.maximum(chest.outer, 0.0) / 0.09)
            fluid = step(chest.y - top + climb, 0.022) * at * chest.airy
            if into is None:
                region |= fluid > 0.2
            else:
                shape = np.maximum(into, fluid)
    strength = 0.25 + 0.75 * min(contrast, 1.0)
    return np.float32(strength) * shape, region | (shape > 0.2)


def thickening_is_apical(place: Place) -> bool:
    """True where pleural thickening lies over the apex instead of along the wall."""
    return bool(place.more[0] < 0.35)


def pleural_other(chest: Chest, place: Place, contrast: float) -> Painted:
    """Pleural thickening along the lateral wall or over the apex, knobbly."""
    at = chest.side == place.side
    y = -0.6 if thickening_is_apical(place) else -0.2 + 0.45 * place.along
    extent = np.exp(-(((chest.y - np.float32(y)) / (0.16 if y < -0.5 else 0.28)) ** 4))
    knobs = 0.075 + 0.03 * np.cos(np.float32(40.0) * chest.y + np.float32(6.28 * place.more[1]))
    shape = step(knobs - chest.outer, 0.012) * extent * chest.airy * at
    return _shadow(shape, 0.95 * contrast)


def fractures_are_many(place: Place) -> bool:
    """True where neighbouring ribs are broken too."""
    return bool(place.more[0] < 0.6)


def fracture(chest: Chest, place: Place, contrast: float) -> Painted:
    """A rib that is broken: a dark gap, and the outer part displaced downwards; often the next rib too."""
    x, y = centre(chest, place, place.side, 0.72, 0.9)
    level = (y - 0.5 * x * x + 0.1 * abs(x)) / chest.body.rib_pitch + chest.body.rib_phase
    rib = np.round(level)
    many = fractures_are_many(place)
    off = chest.rib_level - np.float32(rib)
    near = (off > -0.5) & (off < (2.5 if many else 0.5))
    frac = off - np.round(off)
    break_x = np.float32(abs(x)) - 0.02 * np.round(off)
    along = chest.ax - break_x
    at = (chest.side == place.side) & near
    gap = stroke(chest, along, 0.022) * (np.abs(frac) < 0.36)
    end = step(along, 0.012) * step(0.13 - along, 0.015)
    moved = np.clip(np.cos(2 * np.pi * (frac - 0.3)) * 1.5 - 0.35, 0.0, 0.8).astype(np.float32)
    old = np.clip(np.cos(2 * np.pi * frac) * 1.5 - 0.35, 0.0, 0.8).astype(np.float32)
    inside = step(chest.outer + 0.03, 0.012)
    callus = stroke(chest, along - 0.04, 0.05) * stroke(chest, frac, 0.4) * (0.8 if place.more[1] < 0.6 else 0.3)
    change = (0.35 * end * (moved - old) - 0.4 * gap + callus) * at * inside * np.float32(contrast)
    region = ((gap > 0.15) | (end * np.maximum(moved, old) > 0.1) | (callus > 0.12)) & at & (inside > 0.1)
    return change.astype(np.float32), region


DEVICES = ("central line", "endotracheal tube", "enteric tube", "pacemaker", "sternal wires", "chest tube")
_DEVICE_STARTS = (0.0, 0.28, 0.46, 0.62, 0.8, 0.92, 1.0)


def devices_of(place: Place) -> tuple[str, ...]:
    """The devices that this place stands for, one or two."""
    first = int(np.searchsorted(_DEVICE_STARTS, place.more[0], side="right")) - 1
    second = int(np.searchsorted(_DEVICE_STARTS, place.more[1], side="right")) - 1
    return (DEVICES[first],) if place.more[2] < 0.6 or first == second else (DEVICES[first], DEVICES[second])


def _polyline(chest: Chest, points: list[tuple[float, float]]) -> np.ndarray:
    """Distance from a line through ``points`` whose corners are cut (Chaikin)."""
    cut = [points[0]]
    for (ax, ay), (bx, by) in itertools.pairwise(points):
        cut += [(0.75 * ax + 0.25 * bx, 0.75 * ay + 0.25 * by), (0.25 * ax + 0.75 * bx, 0.25 * ay + 0.75 * by)]
    cut = [*cut[:1], *cut[2:-2], points[-1]] if len(points) > 2 else points
    return np.minimum.reduce([segment(chest, a, b) for a, b in itertools.pairwise(cut)])


def _device(chest: Chest, kind: str, place: Place) -> np.ndarray:
    s, j = float(place.side), 0.04 * (place.across - 0.5)
    if kind == "central line":
        path = [(s * 0.5, -0.62), (s * 0.3, -0.6 + j), (s * 0.12, -0.5), (-0.07, -0.36), (-0.08 + j, -0.02)]
        return stroke(chest, _polyline(chest, path), 0.016)
    if kind == "endotracheal tube":
        left = stroke(chest, _polyline(chest, [(-0.02, -1.1), (-0.015, -0.36 + 2 * j)]), 0.012)
        return np.maximum(left, stroke(chest, _polyline(chest, [(0.02, -1.1), (0.015, -0.38 + 2 * j)]), 0.012))
    if kind == "enteric tube":
        path = [(0.03, -1.1), (0.04 + j, -0.2), (0.05, 0.35), (0.12, 0.6), (0.3 + j, 0.72)]
        return stroke(chest, _polyline(chest, path), 0.017)
    if kind == "pacemaker":
        dx, dy = chest.x - np.float32(s * 0.47), chest.y + np.float32(0.42 + j)
        can = step(1.0 - (np.abs(dx) / 0.1) ** 4 - (np.abs(dy) / 0.085) ** 4, 0.2)
        path = [(s * 0.4, -0.4), (s * 0.2, -0.52), (-0.05, -0.35), (-0.1, 0.05), (0.06, 0.3), (0.22, 0.33)]
        return np.maximum(can, stroke(chest, _polyline(chest, path), 0.016))
    if kind == "sternal wires":
        wave = chest.y / np.float32(0.13)
        ring = np.abs(wave - np.round(wave)) * 0.13 + 0.4 * np.abs(np.abs(chest.x + j) - 0.02)
        return (
            stroke(chest, ring, 0.014)
            * step(0.045 - np.abs(chest.x + j), 0.01)
            * step(0.3 - np.abs(chest.y + 0.1), 0.03)
        )
    wall = float(chest.wall(np.array(0.25, np.float32)))
    path = [(s * (wall + 0.2), 0.34), (s * (wall - 0.05), 0.2 + j), (s * 0.42, -0.25), (s * 0.34, -0.5)]
    return stroke(chest, _polyline(chest, path), 0.018)


def support_devices(chest: Chest, place: Place, contrast: float) -> Painted:
    """Lines, tubes, wires or a pacemaker; faint ones are thin plastic."""
    shape = np.maximum.reduce([_device(chest, kind, place) for kind in devices_of(place)])
    return _shadow(shape, 1.8 * contrast)


PAINTERS: dict[str, Callable[[Chest, Place, float], Painted]] = {
    "Enlarged Cardiomediastinum": enlarged_cardiomediastinum,
    "Cardiomegaly": cardiomegaly,
    "Lung Opacity": lung_opacity,
    "Lung Lesion": lung_lesion,
    "Edema": edema,
    "Consolidation": consolidation,
    "Pneumonia": pneumonia,
    "Atelectasis": atelectasis,
    "Pneumothorax": pneumothorax,
    "Pleural Effusion": effusion,
    "Pleural Other": pleural_other,
    "Fracture": fracture,
    "Support Devices": support_devices,
}

# Tuned so that the findings are about equally hard at 64 pixels: multiplies the contrast before a lesion is painted.
GAIN = {
    "Enlarged Cardiomediastinum": 1.1,
    "Cardiomegaly": 1.1,
    "Lung Opacity": 1.6,
    "Lung Lesion": 4.0,
    "Edema": 0.9,
    "Consolidation": 1.6,
    "Pneumonia": 1.6,
    "Atelectasis": 2.8,
    "Pneumothorax": 3.0,
    "Pleural Effusion": 1.0,
    "Pleural Other": 4.0,
    "Fracture": 5.0,
    "Support Devices": 2.2,
}


def paint(name: str, chest: Chest, place: Place, contrast: float) -> Painted:
    """Finding ``name`` at a visibility of ``contrast``: its change of density and its region, both [h, w]."""
    return PAINTERS[name](chest, place, GAIN[name] * contrast)
