r"""Detectors that are a linear rule on features: local binary patterns, residual noise, embeddings.

A **texture** detector (S-MAD) is the classical baseline: a linear support vector machine on

* ``lbp``: histograms of uniform local binary patterns of the luminance, of 8 neighbours at radius 1
  and 16 at radius 2, in a grid of cells: 4 x 4 cells of 10 + 18 bins are 448 numbers; or
* ``residual``: what a 3 x 3 median leaves of the luminance: log variance and absolute mean in every
  cell, and the log power spectrum averaged over rings: blending and sampling take noise away.

A **difference** detector (D-MAD) compares the suspect's embedding u with the live capture's v, each
of length 1: a logistic regression on :math:`(u_i - v_i)^2`, which weighs the squared distance by
component, and on the cosine of each recogniser. With several recognisers their features are joined;
so are, where asked for, the differences of the two images' pattern histograms.

References:
    | Multiresolution Gray-Scale and Rotation Invariant Texture Classification with Local Binary
    | Patterns (Ojala et al., 2002), https://doi.org/10.1109/TPAMI.2002.1017623
    | Deep Face Representations for Differential Morphing Attack Detection (Scherhag et al., 2020)
    | https://arxiv.org/abs/2001.01202
    | Towards Detection of Morphed Face Images in Electronic Travel Documents (Scherhag, Rathgeb,
    | Busch, 2018), which subtracts the texture of the live capture
    | PRNU-based Detection of Morphed Face Images (Debiasi et al., 2018), for the residual's idea
    | https://doi.org/10.1109/IWBF.2018.8401555
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from scipy.ndimage import median_filter

from adjointdeis.detection.detector import (
    DetectorError,
    Examples,
    Kind,
    Suspects,
    TrainerFactory,
)
from adjointdeis.extras import load
from adjointdeis.faces.image_io import sha256_of
from adjointdeis.faces.recogniser import Recogniser, require_faces
from adjointdeis.files import read_arrays, write_atomically

_FILE = ("mean", "deviation", "weight", "bias")
RINGS = 16  # of spatial frequency, from 0 to 0.5 cycles a pixel
Texture = Literal["lbp", "residual"]
Features = Callable[[Suspects], np.ndarray]


@lru_cache(maxsize=64)
def _memory(*what: object) -> dict[str, np.ndarray]:
    """What is known of images by their hash, one dictionary for each thing that is measured."""
    return {}


def remembered(
    images: np.ndarray,
    names: Sequence[str],
    measure: Callable[[np.ndarray, Sequence[str]], np.ndarray],
    *what: object,
) -> np.ndarray:
    """``measure(images, names)``, (B, D), computed once for an image, whoever asks again.

    One recipe trains many detectors on overlapping examples, all score the same images, and
    candidates for one detector differ in little else than how strongly weights are held back.

    Args:
        images: (B, H, W, 3) uint8.
        names: Of them, for errors.
        measure: Of some of them.
        what: Says what is measured: a fingerprint of it.
    """
    known, keys = _memory(*what), [sha256_of(image) for image in images]
    todo = list({key: k for k, key in enumerate(keys) if key not in known}.values())
    if todo:
        found = measure(images[todo], [names[k] for k in todo])
        known |= {keys[k]: row for k, row in zip(todo, found, strict=True)}
    return np.stack([known[key] for key in keys])


@dataclass(frozen=True, eq=False)
class LinearDetector:
    r"""The score :math:`w^\top (f - \mu) / \sigma + b` of features f.

    Args:
        name: In score files.
        kind: What the features see.
        training: What it was trained on, one line.
        features: (B, D) of suspects.
        mean, deviation: :math:`\mu` and :math:`\sigma`, (D,).
        weight: w, (D,).
        bias: b.
        made_of: What the features are, recognisers by their fingerprints.
    """

    name: str
    kind: Kind
    training: str
    features: Features
    mean: np.ndarray
    deviation: np.ndarray
    weight: np.ndarray
    bias: float
    made_of: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the numbers and of what the features are computed by."""
        numbers = np.concatenate([self.mean, self.deviation, self.weight, [self.bias]])
        return sha256_of("\n".join([sha256_of(numbers), *self.made_of]).encode())

    def score(self, suspects: Suspects) -> np.ndarray:
        return (self.features(suspects) - self.mean) / self.deviation @ self.weight + self.bias

    def save(self, path: Path) -> None:
        """Writes the numbers, and what they were trained on, as ``.npz``."""
        arrays: dict[str, Any] = {name: np.asarray(getattr(self, name)) for name in _FILE}
        arrays |= {"training": np.array(self.training), "made_of": np.array(self.made_of, str)}
        write_atomically(path, lambda file: np.savez(file, **arrays), "wb")


@dataclass(frozen=True, kw_only=True)
class TextureDetection:
    """Trains a linear support vector machine on the texture of single images.

    Args:
        name: Of the detector.
        feature: `lbp` or `residual`, see the module.
        cells: Cells a side.
        regularisation: C of the support vector machine; smaller is smoother.

    Raises:
        DetectorError: Another feature, or no cells.
    """

    name: str
    feature: Texture = "lbp"
    cells: int = 4
    regularisation: float = 0.01
    kind: ClassVar[Kind] = "s_mad"

    def __post_init__(self) -> None:
        if self.feature not in get_args(Texture) or self.cells < 1 or self.regularisation <= 0:
            raise DetectorError(
                f"detector {self.name}: feature={self.feature!r}, cells={self.cells}, "
                f"regularisation={self.regularisation}: expected {' or '.join(get_args(Texture))}, "
                "1 cell or more, and a number above 0"
            )

    def features(self, suspects: Suspects) -> np.ndarray:
        """(B, D) float64."""
        return texture(suspects.images, suspects.names, self.feature, self.cells)

    def train(self, examples: Examples, seed: int, trainer: TrainerFactory) -> LinearDetector:
        svm = load("sklearn.svm", "texture detectors")
        machine = svm.LinearSVC(
            C=self.regularisation, class_weight="balanced", random_state=seed, max_iter=20_000
        )
        return fitted(machine, self.features, examples, self.name, self.kind, self._made_of)

    def load(self, path: str) -> LinearDetector:
        """The detector of a file that :meth:`LinearDetector.save` wrote.

        Raises:
            DetectorError: No such file, or not one of this recipe.
        """
        return loaded(path, self.features, self.name, self.kind, self._made_of)

    @property
    def _made_of(self) -> tuple[str, ...]:
        return (f"{self.feature} in {self.cells} x {self.cells} cells",)


@dataclass(frozen=True, kw_only=True, eq=False)
class DifferenceDetection:
    """Trains a logistic regression on how the embeddings of suspect and live capture differ.

    Args:
        name: Of the detector.
        recognisers: Any of the box, at least one: their embeddings are joined.
        texture: Add the differences of local binary pattern histograms.
        regularisation: C of the logistic regression; smaller is smoother.

    Raises:
        DetectorError: No recogniser.
    """

    name: str
    recognisers: Sequence[Recogniser]
    texture: bool = False
    regularisation: float = 0.03
    kind: ClassVar[Kind] = "d_mad"

    def __post_init__(self) -> None:
        if not self.recognisers:
            raise DetectorError(f"detector {self.name}: recognisers=[]: name at least one")

    def features(self, suspects: Suspects) -> np.ndarray:
        """(B, sum of D + 1) float64: squared differences and the cosine, of each recogniser; and
        the differences of texture.

        Raises:
            DetectorError: No live captures.
            NoFaceError: A recogniser finds no face.
        """
        live, found = suspects.require_live(self.name), []
        sides = suspects.images, live
        for system in self.recognisers:
            embed, what = partial(unit_embeddings, system), ("embeddings", system.fingerprint)
            u, v = (remembered(images, suspects.names, embed, *what) for images in sides)
            found += [(u - v) ** 2, (u * v).sum(1, keepdims=True)]
        if self.texture:
            here, there = (texture(images, suspects.names, "lbp", 4) for images in sides)
            found.append(here - there)
        return np.concatenate(found, axis=1)

    def train(self, examples: Examples, seed: int, trainer: TrainerFactory) -> LinearDetector:
        linear = load("sklearn.linear_model", "difference detectors")
        model = linear.LogisticRegression(
            C=self.regularisation, class_weight="balanced", random_state=seed, max_iter=5_000
        )
        return fitted(model, self.features, examples, self.name, self.kind, self._made_of)

    def load(self, path: str) -> LinearDetector:
        """The detector of a file that :meth:`LinearDetector.save` wrote, with these recognisers.

        Raises:
            DetectorError: No such file, or not one of this recipe.
        """
        return loaded(path, self.features, self.name, self.kind, self._made_of)

    @property
    def _made_of(self) -> tuple[str, ...]:
        systems = tuple(f"embeddings of {system.fingerprint}" for system in self.recognisers)
        return (*systems, "lbp in 4 x 4 cells") if self.texture else systems


def fitted(
    model: Any,
    features: Features,
    examples: Examples,
    name: str,
    kind: Kind,
    made_of: tuple[str, ...] = (),
) -> LinearDetector:
    """The detector of a linear model of scikit-learn, fitted to standardised features.

    Args:
        model: With ``fit``, ``coef_`` and ``intercept_``; class 1 is a morph.
        features: (B, D) of suspects.
        examples: What it learns.
        name, kind, made_of: Of the detector.
    """
    values = features(examples.suspects)
    mean, deviation = values.mean(0), values.std(0)
    # A bin that is empty in every example says nothing, and is not to divide by zero.
    deviation = np.where(deviation > 1e-9, deviation, 1.0)
    model.fit((values - mean) / deviation, np.asarray(examples.morph, int))
    weight, bias = np.ravel(model.coef_), float(np.ravel(model.intercept_)[0])
    return LinearDetector(
        name, kind, examples.description, features, mean, deviation, weight, bias, made_of
    )


def loaded(
    path: str, features: Features, name: str, kind: Kind, made_of: tuple[str, ...] = ()
) -> LinearDetector:
    """A linear detector from a file.

    Args:
        path: The ``.npz`` file.
        features, name, kind, made_of: As of the detector that was saved; the file has its numbers.

    Raises:
        DetectorError: No such file, not one of a linear detector, or one on other features.
    """
    try:
        stored = read_arrays(Path(path))
        numbers = {key: stored[key].astype(np.float64, casting="same_kind") for key in _FILE}
        training, before = str(stored["training"]), tuple(stored["made_of"].tolist())
        shapes = {len(numbers[key]) if numbers[key].ndim == 1 else -1 for key in _FILE[:-1]}
        if numbers["bias"].ndim or len(shapes) > 1 or -1 in shapes:
            raise ValueError("a bias and rows of one length are expected")
        finite = all(np.isfinite(value).all() for value in numbers.values())
        if not finite or (numbers["deviation"] <= 0).any():
            raise ValueError("a number that is not finite, or a deviation that is not above 0")
    except (ValueError, KeyError, TypeError) as error:
        raise DetectorError(
            f"{path}: not the file of a linear detector ({error}); one is left in "
            "detectors/ of a run of task=detection"
        ) from error
    if before != made_of:
        learnt, mine = (", ".join(text[:30] for text in of) or "?" for of in (before, made_of))
        raise DetectorError(
            f"{path} was trained on {learnt}, and detector {name} sees {mine}: give it the same, "
            "in their order"
        )
    bias = float(numbers.pop("bias"))
    return LinearDetector(name, kind, training, features, **numbers, bias=bias, made_of=made_of)


def unit_embeddings(system: Recogniser, images: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Embeddings (B, D) of length 1.

    Args:
        system: Who embeds.
        images: (B, H, W, 3) uint8 RGB.
        names: B names, for the error.

    Raises:
        NoFaceError: The recogniser finds no face in some image; all are named.
    """
    found, acquired = system.embed(images)
    require_faces(acquired, names, system.name)
    found = found.astype(np.float64)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def luminance(images: np.ndarray) -> np.ndarray:
    """(B, H, W) float64 in [0, 255] of (B, H, W, 3) RGB, by ITU-R BT.601."""
    return images.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def texture(images: np.ndarray, names: Sequence[str], feature: Texture, cells: int) -> np.ndarray:
    """(B, D) float64: `lbp` or `residual` of (B, H, W, 3) uint8, see the module.

    Args:
        images: (B, H, W, 3) uint8 RGB.
        names: B names; what was measured is remembered by them.
        feature: `lbp` or `residual`.
        cells: Cells a side, 1 or more.
    """
    one = lbp_histograms if feature == "lbp" else residual_statistics

    def measure(images: np.ndarray, names: Sequence[str]) -> np.ndarray:
        return np.stack([one(grey, cells) for grey in luminance(images)])

    return remembered(images, names, measure, feature, cells)


def lbp_histograms(grey: np.ndarray, cells: int) -> np.ndarray:
    """Histograms of uniform patterns in every cell of (H, W), each of sum 1, joined.

    Args:
        grey: In [0, 255].
        cells: Cells a side.
    """
    pattern = load("skimage.feature", "texture detectors").local_binary_pattern
    rounded, found = np.rint(grey).astype(np.uint8), []
    for points, radius in ((8, 1), (16, 2)):
        codes = pattern(rounded, points, radius, "uniform").astype(int)
        for cell in _cells(codes, cells):
            counts = np.bincount(cell.ravel(), minlength=points + 2)
            found.append(counts / cell.size)
    return np.concatenate(found)


def residual_statistics(grey: np.ndarray, cells: int) -> np.ndarray:
    """What a 3 x 3 median leaves of (H, W): by cell log variance and absolute mean, by ring power.

    Args:
        grey: In [0, 255].
        cells: Cells a side.
    """
    residual = grey - median_filter(grey, 3, mode="nearest")
    by_cell = [(np.log(cell.var() + 1e-3), np.abs(cell).mean()) for cell in _cells(residual, cells)]
    height, width = grey.shape
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    power = np.abs(np.fft.fft2(residual)) ** 2 / grey.size
    ring = np.minimum((radius * 2 * RINGS).astype(int), RINGS - 1)
    # A ring of a small image may hold no frequency.
    members = np.maximum(np.bincount(ring.ravel(), minlength=RINGS), 1)
    spectrum = np.bincount(ring.ravel(), power.ravel(), RINGS) / members
    return np.concatenate([np.ravel(by_cell), np.log(spectrum + 1e-3)])


def _cells(image: np.ndarray, cells: int) -> list[np.ndarray]:
    rows = np.array_split(image, cells, axis=0)
    return [cell for row in rows for cell in np.array_split(row, cells, axis=1)]
