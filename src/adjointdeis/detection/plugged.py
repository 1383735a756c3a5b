"""Detectors of others: a function, a torch network, an ONNX file, or scores computed elsewhere."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from adjointdeis.detection.degradation import NONE
from adjointdeis.detection.detector import (
    DIFFERENTIAL,
    DetectorError,
    Kind,
    Suspects,
    require_kind,
)
from adjointdeis.faces.recognisers.onnx import OnnxRecogniser
from adjointdeis.faces.tensors import to_tensor
from adjointdeis.faces.weights import fingerprint
from adjointdeis.files import read_table
from adjointdeis.texts import finite_number

HIGHER_IS = {"morph": 1.0, "bonafide": -1.0}
"""Sign by what a high score of theirs says."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CallableDetector:
    """A function of images, or of images and live captures.

    Args:
        name: In score files.
        function: ``function(images)`` of (B, H, W, 3) uint8 RGB to B scores; of a differential
            kind, ``function(images, live)``.
        higher_is: What a high score of the function says, ``morph`` or ``bonafide``: published
            detectors have it either way, so there is no default.
        kind: What it sees.
        training: What it was trained on, one line.
        fingerprint: SHA-256 of its weights, where there is one.

    Raises:
        DetectorError: An unknown kind or direction.
    """

    name: str
    function: Callable[..., Any]
    higher_is: str
    kind: Kind = "s_mad"
    training: str = "not stated"
    fingerprint: str = "not stated"

    def __post_init__(self) -> None:
        require_kind(self.kind, self.name)
        sign_of(self.higher_is, self.name)

    def score(self, suspects: Suspects) -> np.ndarray:
        given = [suspects.images]
        if self.kind in DIFFERENTIAL:
            given.append(suspects.require_live(self.name))
        return sign_of(self.higher_is, self.name) * numbers(self.function(*given), self.name)


@dataclass(frozen=True, kw_only=True, eq=False)
class TorchDetector:
    """A torch network of images in [-1, 1], or of images and live captures.

    Args:
        name: In score files.
        network: Gives logits (B) or (B, 1), or (B, classes) of which ``column`` is taken; of a
            differential kind it is called with the live captures as its second argument. It is put
            into evaluation mode.
        higher_is: What a high output says, ``morph`` or ``bonafide``: published detectors have it
            either way, so there is no default.
        kind: What it sees.
        column: Which of several outputs is the score; None where there is one.
        training: What it was trained on, one line.
        fingerprint: SHA-256 of its weights, where there is one.

    Raises:
        DetectorError: An unknown kind or direction.
    """

    name: str
    network: nn.Module
    higher_is: str
    kind: Kind = "s_mad"
    column: int | None = None
    training: str = "not stated"
    fingerprint: str = "not stated"

    def __post_init__(self) -> None:
        require_kind(self.kind, self.name)
        sign_of(self.higher_is, self.name)

    @torch.no_grad()
    def score(self, suspects: Suspects) -> np.ndarray:
        self.network.eval()
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        given = [to_tensor(suspects.images).to(device)]
        if self.kind in DIFFERENTIAL:
            given.append(to_tensor(suspects.require_live(self.name)).to(device))
        output = numbers(self.network(*given), self.name)
        return sign_of(self.higher_is, self.name) * column_of(output, self.column, self.name)


class OnnxDetector:
    """A single-image detector in an ONNX file, with its input spelt out.

    Args:
        file: The ``.onnx`` file.
        higher_is: What a high output says, ``morph`` or ``bonafide``: published detectors have it
            either way, so there is no default.
        name: In score files; the file's stem if None.
        column: Which of several outputs is the score; None where there is one.
        training: What it was trained on, one line.
        stated: Its input, as :class:`adjointdeis.faces.recognisers.onnx.OnnxSpec` says: size,
            colours, mean, std, licence and so on.

    Raises:
        DetectorError: An unknown direction, or no such output.
        MissingPackageError, WeightsError, ValueError: As of an ONNX recogniser.
    """

    kind: Kind = "s_mad"

    def __init__(
        self,
        file: str,
        higher_is: str,
        name: str | None = None,
        column: int | None = None,
        training: str = "not stated",
        **stated: Any,
    ) -> None:
        self.name, self.training = name or Path(file).stem, training
        self.column, self.sign = column, sign_of(higher_is, self.name)
        # What runs a recogniser's file runs this one: a score is an embedding of few numbers.
        self.network = OnnxRecogniser.from_file(file, name=self.name, **stated)
        # Found out here, before any morph is made.
        column_of(np.zeros((1, self.network.embedding_dim)), column, f"{self.name} ({file})")
        self.fingerprint = self.network.fingerprint

    def score(self, suspects: Suspects) -> np.ndarray:
        found, _ = self.network.embed(suspects.images)
        return self.sign * column_of(found.astype(np.float64), self.column, self.name)


@dataclass(frozen=True, eq=False)
class PrecomputedScores:
    """Scores of a file: of a detector that runs elsewhere.

    The file is a CSV with the columns ``image`` and ``score``, and, where it has scores of degraded
    images too, ``degradation``. Names of images are those of ``detection.csv``; the folder may be
    left out where one image alone has the name, which of several attacks' morphs none has.

    Args:
        file: The CSV.
        higher_is: What a high score says, ``morph`` or ``bonafide``: published detectors have it
            either way, so there is no default.
        name: In score files; the file's stem if None.
        kind: What the detector sees.
        training: What it was trained on, one line.

    Raises:
        DetectorError: An unknown kind or direction, no such file, a column that is missing, a score
            that is no number, or an image with two.
    """

    file: str
    higher_is: str
    name: str = ""
    kind: Kind = "s_mad"
    training: str = "not stated"
    scores: Mapping[tuple[str, str], float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or Path(self.file).stem)
        require_kind(self.kind, self.name)
        object.__setattr__(self, "scores", self._read(sign_of(self.higher_is, self.name)))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return fingerprint(self.file)

    @property
    def degradations(self) -> tuple[str, ...]:
        """Those that the file has scores of."""
        return tuple(dict.fromkeys(name for name, _ in self.scores))

    def score(self, suspects: Suspects) -> np.ndarray:
        """Scores of the images as they are; :meth:`of` takes another degradation."""
        return self.of(suspects.names, NONE)

    def of(self, names: Sequence[str], degradation: str) -> np.ndarray:
        """Scores of images by name under a degradation.

        Raises:
            DetectorError: An image has none, or has one by a name that several images share.
        """
        bare, found = Counter(Path(name).name for name in names), []
        missing, shared = [], []
        for name in names:
            short = Path(name).name
            score = self.scores.get((degradation, name))
            if score is None and (degradation, short) in self.scores:
                score = self.scores[degradation, short]
                shared += [name] if bare[short] > 1 else []
            missing += [name] if score is None else []
            found.append(np.nan if score is None else score)
        if missing:
            raise DetectorError(
                f"{self.file} has no score of {len(missing)} of {len(found)} images under the "
                f"degradation {degradation}, such as {missing[0]}: score them all, or leave the "
                "detector out"
            )
        if shared:
            raise DetectorError(
                f"{self.file}: {Path(shared[0]).name} is the name of {bare[Path(shared[0]).name]} "
                f"images, such as {shared[0]}: give the names of detection.csv, with their folder"
            )
        return np.array(found, np.float64)

    def _read(self, sign: float) -> dict[tuple[str, str], float]:
        header, lines = read_table(Path(self.file), DetectorError)
        for column in ("image", "score"):
            if column not in header:
                raise DetectorError(
                    f"{self.file}:1: column {column!r} is missing; expected image,score or "
                    "image,score,degradation"
                )
            if header.count(column) > 1:
                raise DetectorError(f"{self.file}:1: column {column!r} is there twice")
        found: dict[tuple[str, str], float] = {}
        for line, row in lines:
            key = row.get("degradation") or NONE, row["image"]
            if not key[1]:
                raise DetectorError(f"{self.file}:{line}: no image")
            try:
                value = finite_number(row["score"])
            except ValueError as error:
                raise DetectorError(f"{self.file}:{line}: score {row['score']!r} {error}") from None
            if key in found:
                raise DetectorError(f"{self.file}:{line}: {key[1]} has a score already")
            found[key] = sign * value
        if not found:
            raise DetectorError(f"{self.file}: no score in this file")
        return found


def sign_of(higher_is: str, name: str) -> float:
    """1 where a high score says morph, -1 where it says bona fide.

    Raises:
        DetectorError: Another word.
    """
    if higher_is not in HIGHER_IS:
        raise DetectorError(
            f"detector {name}: higher_is={higher_is!r}: expected {' or '.join(HIGHER_IS)}"
        )
    return HIGHER_IS[higher_is]


def numbers(output: Any, name: str) -> np.ndarray:
    """What somebody's detector returned, as float64.

    Raises:
        DetectorError: It is no array of numbers.
    """
    if isinstance(output, torch.Tensor):
        output = output.detach().double().cpu()
    try:
        return np.asarray(output, np.float64)
    except (TypeError, ValueError) as error:
        raise DetectorError(
            f"detector {name} returned {type(output).__name__} ({error}): expected an array of one "
            "number for each image"
        ) from None


def column_of(output: np.ndarray, column: int | None, name: str) -> np.ndarray:
    """(B,) of outputs (B,) or (B, classes), with or without further axes of length 1.

    Raises:
        DetectorError: Several outputs and no column, no such column, or a picture of outputs.
    """
    if max(output.shape[2:], default=1) > 1 or not output.ndim:
        raise DetectorError(
            f"detector {name} returned outputs of shape {output.shape}: expected (B,), (B, 1) or "
            "(B, classes) of which column=... is the score"
        )
    flat = output.reshape(len(output), -1)
    if column is None and flat.shape[1] == 1:
        return flat[:, 0]
    if column is None or not 0 <= column < flat.shape[1]:
        raise DetectorError(
            f"detector {name}: column={column} of {flat.shape[1]} outputs: give the one that is "
            "the score, column=0 for the first"
        )
    return flat[:, column]
