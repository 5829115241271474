"""A chest without disease, as an additive map of X-ray density.

Body coordinates: x from -1 (the patient's right, on the left of the film) to 1, y from -1 (neck) to 1 (abdomen), both
independent of pixels; a film is a sampling of them. Density 0 is air; the film turns density d into the grey
1 - exp(-k d), so that lungs are dark and bone on soft tissue saturates. Shapes are soft steps of signed distances.
"""

import dataclasses

import numpy as np

from repgls_jax.phantom import config as config_lib
from repgls_jax.phantom import population

CENTRAL = 0.35  # density of heart and mediastinum above that of the chest wall


@dataclasses.dataclass(frozen=True)
class Body:
    """One patient on one day: all lengths in body coordinates.

    Attributes:
      width, apex, base: half width of the rib cage, y of the lung tops and of the costophrenic angles.
      dome: height of the diaphragm domes (right, left).
      heart, heart_y: half width and level of the heart; knob: size of the aortic knob.
      mediastinum: half width of the upper mediastinum.
      rib_pitch, rib_phase: distance of ribs and where they start; fat: thickness of the soft tissue, 0..1.
      breasts: 0..1; gas: 0..1, stomach bubble; marker: place of the letter L, 0 without; lean: curvature of the spine.
      vessels: [6] random numbers in [0, 1) that shape vessels and texture.
      angle (radians), zoom, shift_x, shift_y: how the patient stood; turn: rotation about the long axis.
      exposure, noise, fog: of the film; view: "PA" or "AP".
    """

    width: float
    apex: float
    base: float
    dome: tuple[float, float]
    heart: float
    heart_y: float
    knob: float
    mediastinum: float
    rib_pitch: float
    rib_phase: float
    fat: float
    breasts: float
    gas: float
    marker: float
    lean: float
    vessels: np.ndarray
    angle: float
    zoom: float
    shift_x: float
    shift_y: float
    turn: float
    exposure: float
    noise: float
    fog: float
    view: str


def body_of(config: config_lib.PhantomConfig, patient: int, visit: int) -> Body:
    """The body of a patient at a visit: build stays, position and exposure change."""
    p = population.stream(config.seed, config_lib.BODY, patient).random(24)
    v = population.stream(config.seed, config_lib.EXPOSURE, patient, visit).random(16)

    def between(u: float, low: float, high: float) -> float:
        return float(low + (high - low) * u)

    ap = bool(v[0] < (0.75 if p[0] < 0.35 else 0.12))
    breath = between(v[1], -0.05, 0.05) - (0.05 if ap else 0.0)
    dome = between(p[1], 0.14, 0.2)
    return Body(
        width=between(p[2], 0.62, 0.72),
        apex=between(p[3], -0.74, -0.66) + (0.03 if ap else 0.0),
        base=between(p[4], 0.52, 0.64) + breath,
        dome=(dome + between(p[5], 0.02, 0.07), dome),
        heart=between(p[6], 0.27, 0.32) * (1.06 if ap else 1.0),
        heart_y=between(p[7], 0.16, 0.22) + 0.6 * breath,
        knob=between(p[8], 0.075, 0.105),
        mediastinum=between(p[9], 0.105, 0.135) * (1.06 if ap else 1.0),
        rib_pitch=between(p[10], 0.135, 0.16),
        rib_phase=between(p[11], 0.0, 1.0),
        fat=float(p[12]),
        breasts=float(max(0.0, 2 * p[13] - 1)),
        gas=float(max(0.0, 1.6 * v[2] - 0.6)),
        marker=float(v[11]) if v[12] < 0.5 else 0.0,
        lean=between(p[15], -0.03, 0.03),
        vessels=np.concatenate([p[16:20], v[14:16]]),
        angle=between(v[3], -0.05, 0.05) * (1.6 if ap else 1.0),
        zoom=between(v[4], 1.0, 1.18),
        shift_x=between(v[5], -0.05, 0.05),
        shift_y=between(v[6], -0.02, 0.1),
        turn=between(v[7], -0.025, 0.025) * (1.6 if ap else 1.0),
        exposure=between(v[8], 0.8, 1.25),
        noise=between(v[9], 0.006, 0.013) * (1.4 if ap else 1.0),
        fog=between(v[10], 0.0, 0.06) + (0.05 if ap else 0.0),
        view="AP" if ap else "PA",
    )


def step(distance: np.ndarray, softness: float) -> np.ndarray:
    """Soft step: 0 well below 0, 1 well above, over about ``softness``; float32 of the shape of ``distance``."""
    return 0.5 + 0.5 * np.tanh(distance * np.float32(0.5 / softness))


class Chest:
    """The fields of one body on one grid of pixels, float32 [h, w] each, that lesions are drawn with.

    Attributes:
      x, y, ax: body coordinates and |x|; side: -1 on the patient's right, 1 on the left; pixel: size of one.
      outer: x distance inside the lateral wall of the rib cage; floor: y of the diaphragm dome.
      lung: 1 inside the lungs, heart and mediastinum not yet taken out; cover: what lies before them; airy: lung
        that is seen, lung * (1 - cover).
      heart_now, upper_now: this patient's healthy heart and upper mediastinum; beside_heart, beside_upper: 1 where
        no other part of the cover lies.
      ribs: density of the ribs; air: density that aerated lung lacks.
    """

    def __init__(self, body: Body, size: int) -> None:
        self.body = body
        self.pixel = 2.0 / size / body.zoom
        line = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2.0 / size) - 1.0
        px, py = (line[None, :] - body.shift_x) / body.zoom, (line[:, None] - body.shift_y) / body.zoom
        cos, sin = np.float32(np.cos(body.angle)), np.float32(np.sin(body.angle))
        self.y = (cos * py - sin * px).astype(np.float32)
        self.x = (cos * px + sin * py).astype(np.float32)
        self.x = self.x + np.float32(body.lean) * np.cos(2.0 * self.y, dtype=np.float32)
        self.ax = np.abs(self.x)
        self.side = np.where(self.x < 0, np.float32(-1), np.float32(1))
        self.air = 0.66 + 0.36 * body.fat
        self.soft = max(0.012, 0.45 * self.pixel)
        self._lungs()
        self._cover()
        self._ribs()

    def wall(self, y: np.ndarray) -> np.ndarray:
        """Half width of the rib cage at level ``y``."""
        b = self.body
        t = np.clip((y - b.apex) / np.float32(b.base - b.apex), 0.0, 1.0)
        return 0.24 + np.float32(b.width - 0.24) * np.sqrt(1.0 - (1.0 - t) ** 3)

    def _lungs(self) -> None:
        b, y, ax = self.body, self.y, self.ax
        right = self.side < 0
        self.outer = self.wall(y) - ax
        inner = 0.05 + 0.19 * np.exp(np.clip((b.apex - y) / np.float32(0.07), -20.0, 0.5))
        height = np.where(right, np.float32(b.dome[0]), np.float32(b.dome[1]))
        self.floor = b.base - height * (1.0 - ((ax - 0.3) / np.float32(b.width - 0.28)) ** 2)
        self.lung = step(self.outer, self.soft) * step(ax - inner, self.soft) * step(self.floor - y, self.soft)
        self.lung *= step(y - np.float32(b.apex), self.soft)

    def heart(self, widening: float) -> np.ndarray:
        """The heart's shadow, [h, w] in 0..1, ``widening`` (relative, 0 is this patient's own width) wider."""
        b = self.body
        wide = b.heart * (1.0 + widening)
        dx, dy = self.x - np.float32(b.turn) - np.float32(0.09 + 0.3 * (wide - 0.3)), self.y - np.float32(b.heart_y)
        u, v = 0.88 * dx + 0.47 * dy, -0.47 * dx + 0.88 * dy
        r = np.sqrt((u / np.float32(wide)) ** 2 + (v / np.float32(0.21 + 0.3 * (wide - 0.27))) ** 2)
        return step((1.0 - r) * np.float32(wide), 1.4 * self.soft)

    def upper(self, widening: float) -> np.ndarray:
        """The shadow of the upper mediastinum, [h, w] in 0..1, with half width ``mediastinum + widening``."""
        b = self.body
        half = b.mediastinum + widening * np.exp(-((self.y + 0.3) ** 2) / np.float32(0.09))
        half = half + 0.035 * np.clip(-(self.y + 0.5) / 0.3, 0.0, 1.5) + 0.06 * step(self.y + 0.12, 0.06)
        return step(half - np.abs(self.x - np.float32(0.4 * b.turn)), 1.4 * self.soft)

    def _cover(self) -> None:
        b, x, y = self.body, self.x, self.y
        knob_r = np.sqrt((x - np.float32(0.1 + b.turn)) ** 2 + (y + 0.33) ** 2)
        knob = step(np.float32(b.knob) - knob_r, 1.4 * self.soft)
        self.heart_now, self.upper_now = self.heart(0.0), self.upper(0.0)
        self.beside_heart = (1.0 - self.upper_now) * (1.0 - knob)
        self.beside_upper = (1.0 - self.heart_now) * (1.0 - knob)
        clear = self.beside_heart * (1.0 - self.heart_now)
        self.cover = 1.0 - clear
        self.airy = self.lung * clear

    def _ribs(self) -> None:
        b, y, ax = self.body, self.y, self.ax
        turn = np.float32(2 * np.pi)
        self.rib_level = (y - 0.5 * ax**2 + 0.1 * ax) / np.float32(b.rib_pitch) + np.float32(b.rib_phase)
        back = np.clip(np.cos(turn * self.rib_level) * 1.5 - 0.35, 0.0, 0.8)
        level = (y + 0.75 * ax - 0.55 * ax**2) / np.float32(1.25 * b.rib_pitch) + np.float32(b.rib_phase)
        front = np.clip(np.cos(turn * level) * 1.6 - 0.5, 0.0, 0.8)
        cage = step(self.outer + 0.02, 0.02) * step(y - np.float32(b.apex - 0.03), 0.03)
        cage *= step(np.float32(b.base + 0.12) - y, 0.04) * step(ax - 0.06, 0.03)
        self.rib_back = back * cage
        rim = np.exp(-((self.outer + 0.005) ** 2) / np.float32(0.0005)) * 0.16
        self.ribs = 0.15 * self.rib_back + (0.085 * step(ax - 0.22, 0.05) * front + rim) * cage


def stroke(chest: Chest, distance: np.ndarray, width: float) -> np.ndarray:
    """A line of Gaussian profile, 0..1, ``width`` wide at least one pixel; thinner ones fade as they would on film."""
    wide = max(width, 0.7 * chest.pixel)
    return np.float32(np.sqrt(width / wide)) * np.exp(-((distance / np.float32(wide)) ** 2))


def segment(chest: Chest, a: tuple[float, float], b: tuple[float, float]) -> np.ndarray:
    """Distance of every pixel from the line segment a-b in body coordinates, float32 [h, w]."""
    dx, dy = b[0] - a[0], b[1] - a[1]
    length = max(dx * dx + dy * dy, 1e-9)
    qx, qy = chest.x - np.float32(a[0]), chest.y - np.float32(a[1])
    t = np.clip((qx * np.float32(dx) + qy * np.float32(dy)) / np.float32(length), 0.0, 1.0)
    return np.sqrt((qx - t * np.float32(dx)) ** 2 + (qy - t * np.float32(dy)) ** 2)


def _torso(chest: Chest) -> np.ndarray:
    """Soft tissue: neck, shoulders, arms' edge, chest wall, abdomen."""
    b, y, ax = chest.body, chest.y, chest.ax
    shoulder = 0.22 + (0.78 + 0.1 * b.fat) * step(y + 0.72 - 0.05 * b.fat, 0.055)
    trunk = shoulder - (0.16 - 0.14 * b.fat) * step(y + 0.15, 0.12)
    inside = np.clip(1.0 - (ax / trunk) ** 2, 0.0, 1.0)
    tissue = (0.8 + 0.5 * b.fat) * np.sqrt(inside) * step(trunk - ax, 0.015)
    # Beside the rib cage rays cross the trunk's flank and the arm alone.
    tissue = tissue * (0.62 + 0.38 * step(chest.outer + 0.05, 0.05))
    below = step(y - chest.floor, 0.02) * step(np.float32(b.width + 0.07) - ax, 0.05)
    tissue = tissue + 0.75 * below * inside
    # The chest wall is thicker where the shoulders lie before it.
    tissue = tissue + 0.28 * step(-(y + 0.52), 0.08) * step(ax - 0.3, 0.1) * step(trunk - ax, 0.05)
    if b.breasts > 0:
        r2 = ((ax - 0.42) / 0.3) ** 2 + ((y - 0.36) / 0.22) ** 2
        tissue = tissue + np.float32(0.28 * b.breasts) * step(1.0 - r2, 0.12)
    return tissue


def _bones(chest: Chest) -> np.ndarray:
    """Spine with discs, clavicles, scapulae and ribs."""
    b, y, ax = chest.body, chest.y, chest.ax
    discs = 0.8 + 0.2 * np.cos(y * np.float32(2 * np.pi / 0.115))
    spine = 0.42 * step(0.075 - ax, 0.015) * discs
    lift = (b.vessels[1] - 0.5) * 0.12
    droop = y - (-0.56 + lift * 0.4) + (0.25 + lift) * (ax - 0.1) - 0.5 * (ax - 0.12) * (ax - 0.45)
    clavicle = stroke(chest, droop, 0.026) * step(ax - 0.08, 0.02) * step(0.68 - ax, 0.03)
    edge = 0.62 if b.view == "PA" else 0.5
    blade = step(ax - np.float32(edge) - 0.25 * (y + 0.2), 0.02) * step(-(y + 0.02), 0.04) * step(y + 0.62, 0.04)
    humerus = step(0.1 - np.sqrt((ax - 0.86) ** 2 + (y + 0.5) ** 2), 0.015)
    humerus = humerus + 0.7 * step(0.05 - np.abs(ax - 0.9 - 0.08 * (y + 0.5)), 0.015) * step(y + 0.47, 0.03)
    return chest.ribs + spine + 0.34 * clavicle + 0.2 * blade + 0.3 * humerus


def _vessels(chest: Chest) -> np.ndarray:
    """Hila and branching vessels, then a soft mottle; zero outside the lungs."""
    b, y, ax = chest.body, chest.y, chest.ax
    dx, dy = ax - np.float32(0.15), y + np.float32(0.04) - 0.03 * chest.side
    r = np.sqrt(dx * dx + dy * dy)
    theta = np.arctan2(dy, dx + np.float32(1e-6))
    p = (np.asarray(b.vessels) * 2 * np.pi).astype(np.float32)
    bend = theta + 0.35 * np.sin(7.0 * r + p[0]) + 0.4 * chest.side
    branches = (
        np.clip(np.cos(6.0 * bend + p[1]), 0, 1) ** 5 + 0.7 * np.clip(np.cos(11.0 * bend - 9.0 * r + p[2]), 0, 1) ** 5
    )
    hilum = 0.42 * np.exp(-((dx / 0.075) ** 2) - (dy / 0.13) ** 2)
    tree = 0.34 * branches * np.exp(-r / np.float32(0.2)) * (1.0 - np.exp(-r / np.float32(0.04)))
    x = chest.x
    mottle = np.cos(9 * x + 5 * y + p[3]) + np.cos(14 * x - 11 * y + p[4]) * 0.7 + np.cos(-6 * x + 17 * y + p[5]) * 0.6
    return (hilum + tree + 0.03 * mottle) * chest.lung


def density(chest: Chest) -> np.ndarray:
    """Density of the healthy chest, float32 [h, w]."""
    b, x, y, ax = chest.body, chest.x, chest.y, chest.ax
    value = _torso(chest) + _bones(chest) + _vessels(chest)
    middle = step(np.float32(b.mediastinum) - ax, 0.02) * step(y + 0.8, 0.1)
    value += 0.35 * middle + CENTRAL * chest.cover * step(y - np.float32(b.apex), 0.03)
    value -= np.float32(chest.air) * chest.airy
    trachea = step(0.036 - np.abs(x - np.float32(0.3 * b.turn)), 0.012) * step(-(y + 0.2), 0.03)
    value -= 0.45 * trachea
    if b.gas > 0:
        bubble = step(1.0 - ((x - 0.36) / 0.15) ** 2 - ((y - chest.floor - 0.09) / 0.06) ** 2, 0.3)
        value -= np.float32(0.9 * b.gas) * bubble * step(x, 0.02)
    if b.marker != 0.0:  # the letter L of lead, beside the patient's left shoulder
        mx, my = 0.78 + 0.1 * b.marker, -0.8 + 0.2 * b.marker
        letter = np.minimum(
            segment(chest, (mx, my), (mx, my + 0.09)), segment(chest, (mx, my + 0.09), (mx + 0.05, my + 0.09))
        )
        value += 1.3 * stroke(chest, letter, 0.014)
    return value


def film(body: Body, value: np.ndarray, grain: np.ndarray) -> np.ndarray:
    """Exposes a film.

    Args:
      body: for exposure, fog and noise.
      value: density, float32 [h, w].
      grain: standard normal float32 [h, w].

    Returns:
      uint8 [h, w], 0 black.
    """
    grey = 1.0 - np.exp(np.float32(-1.1 / body.exposure) * np.maximum(value, 0.0))
    grey = body.fog + (0.98 - body.fog) * grey + np.float32(body.noise) * grain
    return (np.clip(grey, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
