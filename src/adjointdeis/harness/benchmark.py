"""Faces and pairs of a morphing experiment, validated before anything runs; who the people are."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from adjointdeis.detection.degradation import Degradation
from adjointdeis.evaluation import Subjects, read_subjects
from adjointdeis.faces.datasets.folder import DatasetError, FaceDataset, load_folder
from adjointdeis.faces.datasets.frll import INFO_FILE, read_info
from adjointdeis.faces.datasets.pairs import MorphPair, PairListError, read_pairs, validate_pairs
from adjointdeis.faces.dlib_models import DlibLandmarker
from adjointdeis.faces.image_io import AnyPath, ImageError, first_few, read_image, read_images
from adjointdeis.faces.recogniser import Recogniser
from adjointdeis.files import read_bytes, read_table
from adjointdeis.harness.assets import MINI

SOURCE, OTHER = "03", "08"  # captures: neutral, which is morphed, and smiling, which probes


def finds_faces(system: Recogniser) -> bool:
    """Whether a recogniser looks for the face itself, and so takes photographs of any framing."""
    return bool(getattr(system, "finds_faces", False))


class BenchmarkError(ValueError):
    """Faces and pairs cannot be used; the message lists every problem."""


@dataclass(frozen=True)
class Benchmark:
    """Aligned faces with two captures a subject, and the pairs to morph.

    Attributes:
        dataset: The faces.
        pairs: Pairs in the order of the list.
        originals: The photographs that the faces were aligned from, where a recogniser that finds
            the face itself is to see them as probes; None shows it the aligned faces.
        degradation: What the images in documents went through, the morphs and the references of
            bona fide comparisons; None for nothing. Probes are live captures, and go through none.
    """

    dataset: FaceDataset
    pairs: tuple[MorphPair, ...]
    originals: FaceDataset | None = None
    degradation: Degradation | None = None

    def image(self, subject: str, capture: str) -> AnyPath:
        """Image file of a subject."""
        return self.dataset.subject(subject).images[capture]

    def probe(self, system: Recogniser, subject: str, capture: str) -> AnyPath:
        """The image that a recogniser compares morphs with.

        Args:
            system: The recogniser.
            subject: Id of the person.
            capture: `03` (neutral) or `08` (smiling).
        """
        if self.originals is not None and finds_faces(system):
            return self.originals.subject(subject).images[capture]
        return self.image(subject, capture)

    def alignment(self, system: Recogniser) -> str:
        """Label of how a recogniser's images are aligned: what its thresholds belong to."""
        label = system.alignment
        if self.originals is not None and finds_faces(system):
            label = f"{label} of the original photographs"
        # A threshold at an FMR is one of the images that are compared: here, of degraded ones.
        return label if self.degradation is None else f"{label}, after {self.degradation.name}"

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects that are in some pair, sorted."""
        return tuple(sorted({s for pair in self.pairs for s in pair.subjects}))

    @cached_property
    def people(self) -> Subjects | None:
        """Sex, group and age of the people, from a table beside the faces."""
        return people_beside(self.dataset.root)

    @cached_property
    def _hashes(self) -> dict[tuple[str, str], str]:
        sides = {side for pair in self.pairs for side in pair.sides}
        return {side: file_hash(self.image(*side)) for side in sides}

    def source_hashes(self, pair: MorphPair) -> dict[str, str]:
        """SHA-256 of both images that a pair's morphs are made from, by file name."""
        return {self.image(*side).name: self._hashes[side] for side in pair.sides}


def load_faces(faces: str) -> FaceDataset:
    """The faces of a run.

    Args:
        faces: Folder of aligned images ``NNN_03.png`` and ``NNN_08.png``; "mini" for the embedded
            ones.

    Raises:
        DatasetError: See the message.
    """
    _require_path("faces", faces)
    return load_folder(MINI / "faces" if faces == "mini" else faces, faces)


def _require_path(key: str, value: object) -> None:
    if not isinstance(value, (str, Path)):
        raise PairListError(
            f"data.{key}={value!r}: expected a path or mini; data.limit takes fewer pairs"
        )


def load_benchmark(
    faces: FaceDataset | str,
    pairs: str,
    limit: int | None = None,
    check: Callable[[Benchmark], list[str]] | None = None,
) -> Benchmark:
    """Faces and pairs, with every problem of the list reported at once.

    Args:
        faces: The faces, or what :func:`load_faces` takes.
        pairs: Pair list; "mini" for the embedded one.
        limit: Use this many pairs, spread evenly over the list; None uses all. Evenly, because a
            list is sorted by similarity within its groups and its head is its easiest part.
        check: Finds problems of the images themselves, see :class:`ImageCheck`.

    Raises:
        PairListError, DatasetError: See the messages.
        BenchmarkError: Problems of more than one kind, or of images; all are listed.
    """
    dataset = faces if isinstance(faces, FaceDataset) else load_faces(faces)
    _require_path("pairs", pairs)
    source = MINI / "pairs.csv" if pairs == "mini" else Path(pairs)
    listed = read_pairs(source)
    if limit is not None:
        if limit < 1:
            raise PairListError(f"data.limit={limit}: expected 1 or more, or null for all pairs")
        chosen = np.unique(np.linspace(0, len(listed) - 1, min(limit, len(listed))).round())
        listed = [listed[int(i)] for i in chosen]
    found: list[Exception] = []
    for examine in (
        lambda: validate_pairs(listed, dataset, str(source)),
        lambda: dataset.require((SOURCE, OTHER)),
        dataset.refuse_one_picture_twice,
        lambda: _refuse_smiling(listed, source),
    ):
        try:
            examine()
        except (PairListError, DatasetError) as error:
            found.append(error)
    benchmark = Benchmark(dataset, tuple(listed))
    problems = [] if check is None else check(benchmark)
    if len(found) == 1 and not problems:
        raise found[0]
    if found or problems:
        texts = [str(error) for error in found]
        if len(problems) == 1:
            texts += problems
        elif problems:
            texts.append(f"{len(problems)} images cannot be used:\n  " + "\n  ".join(problems))
        raise BenchmarkError("\n".join(texts))
    return benchmark


def _refuse_smiling(pairs: Sequence[MorphPair], source: Path) -> None:
    wrong = [f"{p.image_a} + {p.image_b}" for p in pairs if {c for _, c in p.sides} != {SOURCE}]
    if wrong:
        raise PairListError(
            f"{source}: {len(wrong)} pairs are not of neutral images ({', '.join(wrong[:3])}); "
            f"scoring takes capture {SOURCE} for the morphed image: keep the {SOURCE} pairs only"
        )


def read_aligned(paths: Sequence[AnyPath], size: int | None) -> np.ndarray:
    """Aligned images as (B, size, size, 3) uint8; without a size, that of the first.

    Raises:
        ValueError: Images that cannot be read, or of another size; the first few, and the count.
    """
    images = read_images(paths)
    wanted = images[0].shape if size is None else (size, size, 3)
    wrong = [
        f"{path} is {image.shape[1]}x{image.shape[0]}"
        for path, image in zip(paths, images, strict=True)
        if image.shape != wanted
    ]
    if wrong:
        reason = "as the autoencoder needs" if size is not None else "like the first of the batch"
        raise ValueError(
            f"{len(wrong)} images are not {wanted[1]}x{wanted[0]} {reason}: "
            f"{first_few(wrong)}; align them first (see adjointdeis.faces.alignment)"
        )
    return np.stack(images)


def file_hash(path: AnyPath) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(read_bytes(path)).hexdigest()


def read_people(path: Path | str) -> Subjects:
    """Sex, group and age by subject: ``subject_id,sex,...``, or ``london_faces_info.csv``.

    Raises:
        ScoreError, DatasetError: No such file, or neither has the columns; names file and line.
    """
    path = Path(path)
    header, _ = read_table(path, DatasetError)
    if "subject_id" in header:
        return read_subjects(path)
    found = read_info(path)
    if not found:
        raise DatasetError(f"{path}: no subject in it")
    names = {"sex": "gender", "group": "ethnicity", "age": "age"}
    return Subjects.from_rows(
        {"subject_id": i, **{ours: entry[theirs] or "" for ours, theirs in names.items()}}
        for i, entry in found.items()
    )


def people_beside(root: Path) -> Subjects | None:
    """The table ``subjects.csv`` or FRLL's in a folder of faces or beside it, if there is one."""
    for folder in (root, root.parent):
        for name in ("subjects.csv", INFO_FILE):
            if (folder / name).is_file():
                return read_people(folder / name)
    return None


CAPTURES = (SOURCE, OTHER)

CountFaces = Callable[[np.ndarray], int]


@dataclass(frozen=True)
class ImageCheck:
    """Looks at every image that a run may read: the probes too, and the faces of people in no pair,
    whose comparisons the thresholds may come from.

    Args:
        size: Side that the autoencoder takes; None where none is needed.
        count_faces: Faces on an (H, W, 3) uint8 image; None does not look for faces.
    """

    size: int | None
    count_faces: CountFaces | None = None

    def __call__(self, benchmark: Benchmark) -> list[str]:
        """One line for every image that cannot be used."""
        sides = {side for pair in benchmark.pairs for side in pair.sides}
        probes = {(s.id, capture) for s in benchmark.dataset.subjects for capture in CAPTURES}
        known = {subject.id: subject for subject in benchmark.dataset.subjects}
        problems = []
        for subject, capture in sorted(sides | probes):
            # Whoever is not there is told of by the check of the pair list.
            images = known[subject].images if subject in known else {}
            if capture in images:
                needs_size = (subject, capture) in sides
                problems += self._problems(images[capture], needs_size)
        return problems

    def _problems(self, path, needs_size: bool) -> list[str]:
        try:
            image = read_image(path)
        except (ImageError, OSError) as error:
            return [str(error)]
        height, width = image.shape[:2]
        if needs_size and self.size is not None and (height, width) != (self.size, self.size):
            return [
                f"{path} is {width}x{height}, not {self.size}x{self.size} as the autoencoder "
                "needs; align the photographs first, python run.py task=align data=real data.root="
                f"{path.parent} task.size={self.size} task.destination=FOLDER, and give that "
                "folder as data.faces"
            ]
        faces = 1 if self.count_faces is None else self.count_faces(image)
        if faces == 0:
            return [f"{path}: no face was found; expected an upright frontal face"]
        if faces > 1:
            return [f"{path}: {faces} faces were found; expected one, crop the image to it"]
        return []


def face_detector() -> CountFaces:
    """Counts faces with dlib's detector."""
    landmarker = DlibLandmarker(box="hog")

    def count(image: np.ndarray) -> int:
        found = landmarker.detect(image)
        return 0 if found is None else found.faces

    return count
