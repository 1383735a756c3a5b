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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.formats.text import (
    Labels,
    Rows,
    expect,
    kind_by_ids,
    number,
    one_path,
    only,
    read_fields,
    write_lines,
)
from adjointdeis.evaluation.scores import BONA_FIDE, ScoreTable
from adjointdeis.texts import canonical

COMPARISON = ("enrollImage", "verifImage", "score", "returnCode")
SINGLE = ("image", "isMorph", "score", "returnCode")
DIFFERENTIAL = ("image", "probeImage", "isMorph", "score", "returnCode")


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
    forms = {form: form for form in (COMPARISON, SINGLE, DIFFERENTIAL)}
    if tuple(header) not in forms:
        known = "; ".join(" ".join(form) for form in forms)
        raise ScoreError(f"{path}:1: unknown header {' '.join(header)!r}; expected one of: {known}")
    rows = Rows(path, by_ids=True)
    for line, fields in lines:
        expect(path, line, fields, header)
        values = dict(zip(header, fields, strict=True))
        common = _common(path, line, values, labels)
        try:
            first = parse_name(fields[0])
            second = parse_name(fields[1]) if header[1] in ("verifImage", "probeImage") else None
        except ScoreError as error:
            raise ScoreError(f"{path}:{line}: {error}") from None
        if header[0] == "enrollImage":
            assert second is not None
            rows.add(line, **_comparison(path, line, first, second, labels), **common)
            continue
        common["score_type"] = labels.score_type or "similarity"
        rows.add(
            line,
            kind="mad",
            morph_id=first.stem if first.is_morph else "",
            attack=labels.attack if first.is_morph else BONA_FIDE,
            subject_id="" if second is None else second.subjects[0],
            probe_id="" if second is None else second.stem,
            ref_id=first.stem,
            **common,
        )
    return rows.table()


def _common(path: Path, line: int, values: dict[str, str], labels: Labels) -> dict[str, Any]:
    try:
        code = int(values["returnCode"])
    except ValueError:
        raise ScoreError(
            f"{path}:{line}: returnCode {values['returnCode']!r}, expected an integer"
        ) from None
    common: dict[str, Any] = {
        "system": labels.system,
        "score_type": labels.score_type or "similarity",
        "status": "fta" if code else "ok",
    }
    if not code:
        common["score"] = number(path, line, values["score"])
    return common


def _comparison(
    path: Path, line: int, enrolled: ImageName, probe: ImageName, labels: Labels
) -> dict[str, str]:
    if probe.is_morph:
        raise ScoreError(f"{path}:{line}: the probe {probe.stem!r} is a morph; enrol morphs")
    subject = probe.subjects[0]
    row = {"subject_id": subject, "probe_id": probe.stem, "ref_id": enrolled.stem}
    if not enrolled.is_morph:
        own = enrolled.subjects[0]
        kind = kind_by_ids(subject, own)
        return {"kind": kind, "ref_subject_id": own, **row}
    if canonical(subject) not in map(canonical, enrolled.subjects):
        raise ScoreError(
            f"{path}:{line}: subject {subject!r} did not contribute to the morph {enrolled.stem!r}"
        )
    policy = {"attack": labels.attack, "probe_policy": labels.probe}
    return {"kind": "morph", "morph_id": enrolled.stem, **policy, **row}


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
        score = "-1" if failed else repr(row["score"])
        code = "1" if failed else "0"
        reference = row["ref_id"] or row["morph_id"]
        decision = str(int(not failed and row["score"] > 0.5))
        if not len(detection):
            cells = [reference, row["probe_id"], score, code]
        elif differential:
            cells = [reference, row["probe_id"], decision, score, code]
        else:
            cells = [reference, decision, score, code]
        if any(not cell or " " in cell for cell in cells):
            raise ScoreError("a log needs image names without blanks in every row")
        lines.append(" ".join(cells))
    write_lines(path, lines)
