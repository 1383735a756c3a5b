"""What a pool of pictures contains, and what each of its pictures shows."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache

from synthetic_faces.capture import Capture, sample_capture
from synthetic_faces.expression import Expression, neutral, smile
from synthetic_faces.identity import Identity, sample_identity
from synthetic_faces.roles import FIRST_APPEARANCE, RANGE, identity_seed
from synthetic_faces.seeds import Streams

# Raise when the same spec starts to give other pictures: old pools are then refused.
GENERATOR_VERSION = 1


@dataclass(frozen=True)
class PoolSpec:
    """A set of pictures, fully determined by these values.

    Attributes:
        role: key of ``ROLES``.
        first_seed: index of the first identity within the role.
        identities, images_per_identity: the pictures of an identity are consecutive.
        size: side in pixels.
        wild: probability that a picture is taken in the wild instead of in the studio.
        reappear: probability that a picture shows other skin, brows, eye colour, hair, beard and
            shirt on the same bones, hence the same label.
        smile: probability of a smile instead of a neutral face.
        spread, asymmetry: see ``sample_shape``.
        fixed_appearance_seed: everybody has this identity's appearance: only shape tells apart.
        fixed_shape_seed: everybody has this identity's bones: only texture tells apart.

    Raises:
        ValueError: a count below one, a probability outside [0, 1], or contradictory choices.
    """

    role: str
    first_seed: int = 0
    identities: int = 100
    images_per_identity: int = 4
    size: int = 64
    wild: float = 0.0
    reappear: float = 0.0
    smile: float = 0.5
    spread: float = 0.25
    asymmetry: float = 0.2
    fixed_appearance_seed: int | None = None
    fixed_shape_seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("identities", "images_per_identity", "size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        for name in ("wild", "reappear", "smile"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a probability is in [0, 1]")
        identity_seed(self.role, self.first_seed)
        if self.first_seed + self.identities > RANGE:
            raise ValueError(
                f"first_seed {self.first_seed} + identities {self.identities} leaves the "
                f"{RANGE} seeds of role {self.role!r}"
            )
        if self.fixed_appearance_seed is not None and self.fixed_shape_seed is not None:
            raise ValueError("fix the appearance or the shape, not both: labels would mean nothing")
        if self.reappear > 0 and (self.fixed_appearance_seed, self.fixed_shape_seed) != (None,) * 2:
            raise ValueError("reappear must be 0 when the appearance or the shape is fixed")

    def __len__(self) -> int:
        return self.identities * self.images_per_identity

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the spec and the generator's version."""
        text = json.dumps({**asdict(self), "generator": GENERATOR_VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def probe_specs(identities: int = 60, images_per_identity: int = 4) -> dict[str, PoolSpec]:
    """Two pools that show what a recogniser reads.

    ``shape_only``: one appearance on many shapes; verification must work. ``texture_only``: one
    shape under many appearances; a recogniser that tells these apart takes a shortcut.
    """
    common = PoolSpec("probe", 0, identities, images_per_identity)
    fixed = identity_seed("probe", RANGE - 1)
    return {
        "shape_only": replace(common, fixed_appearance_seed=fixed),
        "texture_only": replace(common, fixed_shape_seed=fixed),
    }


@dataclass(frozen=True)
class Scene:
    """One picture before it is rendered; ``label`` counts identities from 0 within the pool."""

    label: int
    seed: int
    identity: Identity
    expression: Expression
    capture: Capture

    @property
    def row(self) -> dict[str, int | str]:
        """Metadata of the picture."""
        return {
            "label": self.label,
            "identity_seed": self.seed,
            "appearance_seed": self.identity.appearance.seed,
            "expression": self.expression.name,
            "capture": self.capture.kind,
            "sex": self.identity.shape.sex,
            "group": self.identity.shape.group,
        }


@lru_cache(maxsize=8)
def _identity(spec: PoolSpec, seed: int) -> Identity:
    if spec.fixed_appearance_seed is not None:
        worn = sample_identity(spec.fixed_appearance_seed, spec.spread, spec.asymmetry)
        return worn.with_shape(seed, spec.spread, spec.asymmetry)
    own = sample_identity(seed, spec.spread, spec.asymmetry)
    if spec.fixed_shape_seed is not None:
        return own.with_shape(spec.fixed_shape_seed, spec.spread, spec.asymmetry)
    return own


def scene(spec: PoolSpec, index: int) -> Scene:
    """The ``index``-th picture of a pool.

    Every picture has its own streams, so identities and pictures can be added to a pool without
    changing the ones it has.

    Raises:
        IndexError: the pool has fewer pictures.
    """
    if not 0 <= index < len(spec):
        raise IndexError(f"picture {index} of a pool of {len(spec)}")
    label, shot = divmod(index, spec.images_per_identity)
    seed = identity_seed(spec.role, spec.first_seed + label)
    streams = Streams(seed)
    identity = _identity(spec, seed)
    if streams.chance(f"shot {shot} reappears", spec.reappear):
        other = int(streams(f"shot {shot} appearance").integers(FIRST_APPEARANCE))
        identity = identity.with_appearance(FIRST_APPEARANCE + other)
    face = streams(f"shot {shot} expression")
    if streams.chance(f"shot {shot} smiles", spec.smile):
        expression = smile(identity.shape, float(face.uniform(0.75, 1.0)))
    else:
        expression = neutral(face)
    kind = "wild" if streams.chance(f"shot {shot} wild", spec.wild) else "studio"
    capture = sample_capture(streams(f"shot {shot} capture {kind}"), kind)
    return Scene(label, seed, identity, expression, capture)
