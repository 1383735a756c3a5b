"""Lists of pairs to morph: the most-similar-pairs rule of SYN-MAD, file formats, and validation.

Formats that are read, one pair per line, or one file per pair in a folder of morphs:

==============================  =======================================================
`a.png,b.png,out.png`           generation lists of DiM and Greedy-DiM, no header
`001_013.png`                   DiM-FRLL-Morphs, both neutral
`001_08-vs-010_08.jpg`          MAD22 (SYN-MAD 2022)
`morph TAB bona fide TAB b.f.`  `SYN-MAD22_<method>_triples.txt`
==============================  =======================================================

Reference:
    | SYN-MAD 2022: Competition on Face Morphing Attack Detection (Huber et al., 2022)
    | https://arxiv.org/abs/2208.07337
"""

import csv
import io
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from adjointdeis.faces.datasets.folder import (
    NAME,
    NEUTRAL,
    FaceDataset,
    warn_left_out,
    why_left_out,
)
from adjointdeis.faces.image_io import IMAGE_SUFFIXES
from adjointdeis.faces.recogniser import Recogniser
from adjointdeis.files import read_text, write_atomically
from adjointdeis.texts import canonical, file_key, is_file_name

_DIM = re.compile(r"^(?P<a>\d{3})_(?P<b>\d{3})$")
_MAD22 = re.compile(r"^(?P<a>\w*?\d+_\d{2})-vs-(?P<b>\w*?\d+_\d{2})$")


class PairListError(ValueError):
    """A pair list is unusable; the message lists everything that is wrong with it."""


@dataclass(frozen=True)
class MorphPair:
    """Two images to morph.

    Attributes:
        subject_a, subject_b: Subject ids.
        capture_a, capture_b: Captures, 03 for neutral.
        name: File name of the morph, with suffix.
        group: Group within which the pair was chosen, or empty.
        similarity: Similarity by which it was chosen, or NaN.
    """

    subject_a: str
    subject_b: str
    capture_a: str = NEUTRAL
    capture_b: str = NEUTRAL
    name: str = ""
    group: str = ""
    similarity: float = float("nan")

    @property
    def image_a(self) -> str:
        """Stem of the first image, such as 001_03."""
        return f"{self.subject_a}_{self.capture_a}"

    @property
    def image_b(self) -> str:
        """Stem of the second image."""
        return f"{self.subject_b}_{self.capture_b}"

    @property
    def sides(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """(subject, capture) of both images, first and second."""
        return (self.subject_a, self.capture_a), (self.subject_b, self.capture_b)

    @property
    def morph_id(self) -> str:
        """Stem of the morph's file name."""
        return PurePosixPath(self.name).stem or f"{self.subject_a}_{self.subject_b}"

    @property
    def subjects(self) -> frozenset[str]:
        """Both subjects, without order."""
        return frozenset((self.subject_a, self.subject_b))


def most_similar_pairs(
    embeddings: np.ndarray,
    ids: Sequence[str],
    groups: Sequence[str],
    recogniser: Recogniser,
    per_group: int,
    excluded: Iterable[frozenset[str]] = (),
    most_per_person: int | None = None,
) -> list[MorphPair]:
    """The `per_group` most similar pairs of each group, most similar first (SYN-MAD's rule).

    SYN-MAD took the 250 most similar pairs of each gender by ElasticFace on FRLL's neutral images.
    A list chosen by a recogniser favours attacks on that same recogniser; say so when it judges.

    Args:
        embeddings: (N, D), one per subject.
        ids: N subject ids.
        groups: N group names, such as the gender; pairs never cross groups.
        recogniser: Compares the embeddings.
        per_group: Pairs of each group.
        excluded: Sets of two ids never to pair, such as the false matches of a recogniser.
        most_per_person: Pairs that one person may be in: a person who resembles many would
            otherwise decide the result. None sets no limit.

    Raises:
        PairListError: A group has fewer pairs than asked for.
        ValueError: Lengths differ, or an embedding is a failure to acquire.
    """
    if not len(embeddings) == len(ids) == len(groups):
        raise ValueError(
            f"pairs: {len(embeddings)} embeddings, {len(ids)} ids and {len(groups)} groups"
        )
    if per_group < 1:
        raise ValueError(f"pairs per group: expected at least 1, got {per_group}")
    failed = [i for i, row in zip(ids, embeddings, strict=True) if not np.isfinite(row).all()]
    if failed:
        raise ValueError(f"pairs: no embedding (failure to acquire) for {', '.join(failed)}")
    banned = set(excluded)
    pairs = []
    for group in sorted(set(groups)):
        members = sorted((i, n) for n, i in enumerate(ids) if groups[n] == group)
        names, rows = [i for i, _ in members], embeddings[[n for _, n in members]]
        similarity = recogniser.compare(rows[:, None], rows[None])
        candidates = [
            (-float(similarity[i, j]), names[i], names[j])
            for i, j in itertools.combinations(range(len(names)), 2)
            if frozenset((names[i], names[j])) not in banned
        ]
        taken: dict[str, int] = dict.fromkeys(names, 0)
        chosen: list[MorphPair] = []
        for negative, a, b in sorted(candidates):
            full = most_per_person is not None and max(taken[a], taken[b]) >= most_per_person
            if len(chosen) < per_group and not full:
                taken[a], taken[b] = taken[a] + 1, taken[b] + 1
                name = f"{a}_{b}.png"
                chosen.append(MorphPair(a, b, name=name, group=group, similarity=-negative))
        if len(chosen) < per_group:
            each = "" if most_per_person is None else f", each in at most {most_per_person} pairs"
            raise PairListError(
                f"group {group}: {len(chosen)} pairs can be made of {len(names)} subjects{each}; "
                f"{per_group} were asked for"
            )
        pairs += chosen
    return pairs


def read_pairs(source: Path | str) -> list[MorphPair]:
    """Reads a pair list in any of the formats above, or a folder of morphs by their names.

    Raises:
        FileNotFoundError: No such file or folder.
        PairListError: Lines that are no pair (all are listed), or no pair at all.
    """
    source = Path(source)
    if source.is_dir():
        listed = [p.name for p in sorted(source.iterdir()) if not p.name.startswith(".")]
        lines = [name for name in listed if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
        left_out: dict[str, list[str]] = {}
        for name in listed:
            if reason := why_left_out(name, ""):
                left_out.setdefault(reason, []).append(name)
        warn_left_out(source, left_out)
    elif source.is_file():
        lines = read_text(source, PairListError).splitlines()
    else:
        raise FileNotFoundError(f"pair list {source}: no such file or folder")
    pairs, problems = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            pairs.append(parse_pair(line))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        raise PairListError(f"{source}: {'; '.join(problems)}")
    if not pairs:
        raise PairListError(f"{source}: the pair list is empty; expected one pair per line")
    return pairs


def parse_pair(line: str) -> MorphPair:
    """One line of a pair list.

    Raises:
        ValueError: The line has none of the known forms.
    """
    separator = "\t" if "\t" in line else ","
    try:
        row = next(csv.reader(io.StringIO(line), delimiter=separator, strict=True))
    except csv.Error as error:
        raise ValueError(f"{line.strip()[:80]!r} is no pair ({error})") from None
    fields = [field.strip() for field in row]
    if len(fields) == 1:
        name = PurePosixPath(fields[0].replace("\\", "/")).name
        stem = canonical(PurePosixPath(name).stem)
        if match := _DIM.match(stem):
            return MorphPair(match["a"], match["b"], name=name)
        if match := _MAD22.match(stem):
            return _pair_of(match["a"], match["b"], name)
    elif len(fields) == 3 and separator == "\t":
        return _pair_of(fields[1], fields[2], fields[0])
    elif len(fields) in (2, 3):
        return _pair_of(fields[0], fields[1], fields[2] if len(fields) == 3 else "")
    raise ValueError(
        f"{line.strip()[:80]!r} is no pair; expected 'a.png,b.png,out.png', '001_013.png', "
        "'001_08-vs-010_08.jpg' or a tab-separated triple"
    )


def _pair_of(a: str, b: str, name: str) -> MorphPair:
    stems = [canonical(PurePosixPath(field.replace("\\", "/")).stem) for field in (a, b)]
    matches = [NAME.match(stem) for stem in stems]
    wrong = [stem for stem, match in zip(stems, matches, strict=True) if match is None]
    one, two = matches
    if one is None or two is None:
        raise ValueError(
            f"{', '.join(map(repr, wrong))}: expected two images, as in 001_03.png,002_03.png"
        )
    name = PurePosixPath(name.replace("\\", "/")).name or f"{stems[0]}-vs-{stems[1]}.png"
    return MorphPair(one["subject"], two["subject"], one["capture"], two["capture"], name)


def validate_pairs(
    pairs: Sequence[MorphPair], dataset: FaceDataset, source: str = "pair list"
) -> None:
    """Checks a pair list against a data set before anything expensive runs.

    Args:
        pairs: The list.
        dataset: Where its images must be.
        source: What the message calls the list.

    Raises:
        PairListError: With *all* problems: an empty list, unknown subjects, missing images, a pair
            of one person with itself, the same pair twice, output names that are one file (x.png
            and x.jpg, X.png and x.png) or none.
    """
    problems = [] if pairs else ["the list is empty"]
    subjects = {subject.id: subject for subject in dataset.subjects}
    seen: dict[tuple[frozenset[str], str, str], str] = {}
    names: dict[str, str] = {}
    for pair in pairs:
        label = f"{pair.image_a} + {pair.image_b}"
        if pair.subject_a == pair.subject_b:
            problems.append(f"{label}: both images show subject {pair.subject_a}")
        sides = ((pair.subject_a, pair.capture_a), (pair.subject_b, pair.capture_b))
        for subject_id, capture in sides:
            if subject_id not in subjects:
                problems.append(f"{label}: unknown subject {subject_id}")
            elif capture not in subjects[subject_id].images:
                problems.append(f"{label}: no image {subject_id}_{capture}")
        key = (
            pair.subjects,
            min(pair.capture_a, pair.capture_b),
            max(pair.capture_a, pair.capture_b),
        )
        if key in seen:
            problems.append(f"{label}: the same pair as {seen[key]}")
        elif (other := names.get(file_key(pair.morph_id))) is not None:
            same = "is taken twice" if other == pair.name else f"and {other} are one file"
            problems.append(
                f"{label}: the output name {pair.name} {same}; morphs are written as "
                f"{pair.morph_id}.png, and some file systems do not tell X from x"
            )
        if not is_file_name(pair.morph_id):
            problems.append(f"{label}: the output name {pair.name[:80]!r} is no file name")
        seen.setdefault(key, label)
        names.setdefault(file_key(pair.morph_id), pair.name)
    if problems:
        raise PairListError(
            f"{source} against {dataset.name} at {dataset.root}: {len(problems)} problems:\n  "
            + "\n  ".join(problems)
        )


def write_pairs(path: Path | str, pairs: Sequence[MorphPair]) -> None:
    """Writes `a.png,b.png,out.png` lines, atomically."""
    text = "".join(f"{pair.image_a}.png,{pair.image_b}.png,{pair.name}\n" for pair in pairs)
    write_atomically(path, text)


def overlap(first: Sequence[MorphPair], second: Sequence[MorphPair]) -> tuple[int, int]:
    """How many pairs of subjects two lists share, and how many there are in the first."""
    one, two = {pair.subjects for pair in first}, {pair.subjects for pair in second}
    return len(one & two), len(one)
