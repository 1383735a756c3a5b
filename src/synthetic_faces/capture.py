"""How a picture is taken: light, pose, framing, gaze, background and sensor noise."""

from dataclasses import dataclass

import numpy as np

KINDS = ("studio", "wild")


@dataclass(frozen=True)
class Light:
    """A key light that casts shadows, a fill light, and ambient light from all around and above.

    Directions point from the head to the light (x right in the picture, y up, z to the camera);
    intensities are linear.
    """

    key: tuple[float, float, float] = (0.35, 0.45, 1.0)
    key_intensity: float = 1.0
    key_colour: tuple[float, float, float] = (1.0, 0.97, 0.93)
    fill: tuple[float, float, float] = (-0.6, 0.2, 0.8)
    fill_intensity: float = 0.35
    ambient: float = 0.42
    top: float = 0.25


@dataclass(frozen=True)
class Capture:
    """One press of the shutter.

    Attributes:
        kind: ``studio`` or ``wild``, a label.
        light: see ``Light``.
        yaw, pitch, roll: head pose, radians.
        shift: displacement of the face, fraction of the picture (right, down).
        scale: size of the face relative to the standard framing.
        gaze: direction of the eyes (right, up), tangent of the angle.
        background: display colour in [0, 1].
        noise: standard deviation of the sensor noise, display values.
        seed: of the sensor noise.
    """

    kind: str = "studio"
    light: Light = Light()
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    gaze: tuple[float, float] = (0.0, 0.0)
    background: tuple[float, float, float] = (0.74, 0.74, 0.74)
    noise: float = 0.0
    seed: int = 0


def _studio(rng: np.random.Generator) -> Capture:
    grey = float(0.74 + rng.normal(0, 0.02))
    return Capture(
        kind="studio",
        light=Light(
            key=(rng.normal(0.25, 0.12), rng.normal(0.4, 0.08), 1.0),
            key_intensity=rng.normal(0.95, 0.05),
            key_colour=(1.0, rng.normal(0.97, 0.01), rng.normal(0.94, 0.02)),
            fill=(-rng.uniform(0.4, 0.8), 0.2, 0.8),
            fill_intensity=rng.normal(0.38, 0.05),
            ambient=rng.normal(0.42, 0.03),
            top=0.25,
        ),
        yaw=rng.normal(0, 0.03),
        pitch=rng.normal(0, 0.03),
        roll=rng.normal(0, 0.012),
        shift=(rng.normal(0, 0.006), rng.normal(0, 0.006)),
        scale=1 + rng.normal(0, 0.012),
        gaze=(rng.normal(0, 0.03), rng.normal(0, 0.03)),
        background=(grey, grey, grey),
        noise=0.008,
        seed=int(rng.integers(1 << 30)),
    )


def _wild(rng: np.random.Generator) -> Capture:
    return Capture(
        kind="wild",
        light=Light(
            key=(rng.uniform(-0.9, 0.9), rng.uniform(0.0, 0.8), 1.0),
            key_intensity=rng.uniform(0.7, 1.1),
            key_colour=(1.0, rng.uniform(0.88, 1), rng.uniform(0.78, 1.02)),
            fill=(rng.uniform(-0.9, 0.9), 0.1, 0.8),
            fill_intensity=rng.uniform(0.1, 0.5),
            ambient=rng.uniform(0.25, 0.5),
            top=rng.uniform(0.1, 0.4),
        ),
        yaw=rng.normal(0, 0.22),
        pitch=rng.normal(0, 0.10),
        roll=rng.normal(0, 0.05),
        shift=(rng.normal(0, 0.02), rng.normal(0, 0.02)),
        scale=1 + rng.normal(0, 0.05),
        gaze=(rng.normal(0, 0.08), rng.normal(0, 0.05)),
        background=tuple(rng.uniform(0.2, 0.9, 3).tolist()),
        noise=0.015,
        seed=int(rng.integers(1 << 30)),
    )


def sample_capture(rng: np.random.Generator, kind: str = "studio") -> Capture:
    """Random capture conditions.

    Args:
        rng: source of randomness.
        kind: ``studio`` is a frontal passport photograph; ``wild`` varies pose, light, framing and
            background a lot.

    Raises:
        ValueError: another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind of capture {kind!r} is unknown; it is one of {', '.join(KINDS)}")
    return _studio(rng) if kind == "studio" else _wild(rng)
