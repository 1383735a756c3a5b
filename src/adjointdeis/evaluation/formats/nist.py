"""Logs of NIST FATE MORPH: comparison, single-image and differential detection.

Header and fields, separated by blanks:
`enrollImage verifImage score returnCode`, `image isMorph score returnCode`,
`image probeImage isMorph score returnCode`. A return code other than 0 is a failure, whatever the
score (-1 by custom). `isMorph` is the detector's decision, not the truth; it is read past and
written as morphiness > 0.5. Who is on an image, and whether it is a morph, is taken from its name:
a bona fide image is `NNN_VV` (subject and view), a morph `001_002` (two subjects, AMSL) or
`001_08-vs-010_08` (two images, SYN-MAD 2022).

References:
    | NIST FATE MORPH
    | https://pages.nist.gov/frvt/html/frvt_morph.html
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.formats.text import (
    Labels,
    Rows,
    expect,
    joined_by_blanks,
    number,
    one_path,
    only,
    read_fields,
    write_lines,
)
from adjointdeis.evaluation.scores import ScoreTable
from adjointdeis.texts import canonical

COMPARISON = ("enrollImage", "verifImage", "score", "returnCode")
SINGLE = ("image", "isMorph", "score", "returnCode")
DIFFERENTIAL = ("image", "probeImage", "isMorph", "score", "returnCode")
HEADERS = (COMPARISON, SINGLE, DIFFERENTIAL)

_NAME = re.compile(r"(?P<a>\d{3})_(\d{2}(-vs-(?P<b>\d{3})_\d{2})?|(?P<other>\d{3}))")


@dataclass(frozen=True)
class ImageName:
    """What a file name says: one subject for a bona fide image, two for a morph."""

    stem: str
    subjects: tuple[str, ...]

    @property
    def is_morph(self) -> bool:
        """Whether two people contributed."""
        return len(self.subjects) > 1


def parse_name(path: str) -> ImageName:
    """Parses a file name or path, with or without suffix.

    Raises:
        ScoreError: when the name has none of the forms above.
    """
    stem = PurePath(path).stem
    found = _NAME.fullmatch(stem)
    if found is None:
        raise ScoreError(
            f"image name {path!r}: expected NNN_VV, NNN_NNN or NNN_VV-vs-NNN_VV (digits), "
            "which say whose image it is"
        )
    second = found["b"] or found["other"]
    return ImageName(stem, (found["a"], second) if second else (found["a"],))


def read_one(path: Path, labels: Labels) -> ScoreTable:
    """A log; the header says of which kind it is.

    Comparisons take their direction from `labels`, similarity by default; a morph must be the
    enrolled image.

    Raises:
        ScoreError: unknown header, a line of another length, or an image name that does not parse.
    """
    lines = read_fields(path)
    header = next(lines, (1, []))[1]
    if tuple(header) not in HEADERS:
        known = "; ".join(" ".join(names) for names in HEADERS)
        raise ScoreError(f"{path}:1: unknown header {' '.join(header)!r}; expected one of: {known}")
    rows = Rows(path, labels, labels.score_type or "similarity")
    for line, fields in lines:
        expect(path, line, fields, header)
        score = _score(path, line, dict(zip(header, fields, strict=True)))
        try:
            first = parse_name(fields[0])
            second = parse_name(fields[1]) if header[1] in ("verifImage", "probeImage") else None
        except ScoreError as error:
            raise ScoreError(f"{path}:{line}: {error}") from None
        if header[0] == "enrollImage":
            assert second is not None
            _add_comparison(rows, line, first, second, score)
            continue
        rows.image(
            line,
            first.stem,
            labels.attack if first.is_morph else None,
            subject_id="" if second is None else second.subjects[0],
            probe_id="" if second is None else second.stem,
            **score,
        )
    return rows.table()


def _score(path: Path, line: int, values: dict[str, str]) -> dict[str, Any]:
    """Columns `score` and `status`."""
    try:
        code = int(values["returnCode"])
    except ValueError:
        raise ScoreError(
            f"{path}:{line}: returnCode {values['returnCode']!r}, expected an integer"
        ) from None
    return {"status": "fta"} if code else {"score": number(path, line, values["score"])}


def _add_comparison(
    rows: Rows, line: int, enrolled: ImageName, probe: ImageName, score: Mapping[str, Any]
) -> None:
    place = f"{rows.path}:{line}"
    if probe.is_morph:
        raise ScoreError(f"{place}: the probe {probe.stem!r} is a morph; enrol morphs")
    subject = probe.subjects[0]
    images = {"probe_id": probe.stem, "ref_id": enrolled.stem}
    if not enrolled.is_morph:
        rows.comparison(line, subject, enrolled.subjects[0], **images, **score)
        return
    if canonical(subject) not in map(canonical, enrolled.subjects):
        raise ScoreError(
            f"{place}: subject {subject!r} did not contribute to the morph {enrolled.stem!r}"
        )
    rows.morph(line, morph_id=enrolled.stem, subject_id=subject, **images, **score)


def write(table: ScoreTable, paths: Sequence[Path]) -> None:
    """Writes one log: comparisons, or detection scores (differential if they have probes)."""
    path = one_path(paths, "one log")[0]
    only(table, "system")
    detection = table.select(kind="mad")
    if len(detection) and len(detection) != len(table):
        raise ScoreError("detection scores and comparisons go into separate logs")
    differential = bool(len(detection)) and bool((detection["probe_id"] != "").all())
    header = COMPARISON if not len(detection) else DIFFERENTIAL if differential else SINGLE
    lines = [" ".join(header)]
    for row in table.to_rows():
        failed = row["score"] is None
        reference = row["ref_id"] or row["morph_id"]
        fields = {
            "enrollImage": reference,
            "image": reference,
            "verifImage": row["probe_id"],
            "probeImage": row["probe_id"],
            "isMorph": str(int(not failed and row["score"] > 0.5)),
            "score": "-1" if failed else repr(row["score"]),
            "returnCode": "1" if failed else "0",
        }
        cells = [fields[name] for name in header]
        lines.append(joined_by_blanks(cells, "a log needs image names without blanks in every row"))
    write_lines(path, lines)
