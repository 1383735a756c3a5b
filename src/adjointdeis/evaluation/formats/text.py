"""What the text formats share: labels they lack, lines with numbers, rows with places.

`path` and `line` say where a text stands; every ScoreError begins with them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adjointdeis.evaluation.columns import SCORE_TYPES
from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.policies import refuse_unmatched_ids
from adjointdeis.evaluation.scores import BONA_FIDE, PROBE_POLICIES, ScoreTable
from adjointdeis.files import read_csv, read_text, write_atomically
from adjointdeis.texts import any_number, canonical, finite_number


@dataclass(frozen=True)
class Labels:
    """Facts that a foreign score file leaves out.

    Args:
        system: the recogniser's or detector's name, where the file has none.
        score_type: `similarity` or `dissimilarity`; None uses the format's own rule and is an
            error for formats without one. For detectors `similarity` means high says "morph".
        attack: the attack behind the morphs.
        probe_policy: `source`, the very image that made the morph, or `other`, another image of
            the subject. No file says it and tens of points hang on it, so there is no default.
        alignment, model_fingerprint, data_set: what a threshold is checked against; empty where
            unknown, and then nothing can be checked.
        kind: of every row, for tables of one's own that have no such column.
        columns: canonical name to a column of a table of one's own.
    """

    system: str = "system"
    score_type: str | None = None
    attack: str = "attack"
    probe_policy: str | None = None
    alignment: str = ""
    model_fingerprint: str = ""
    data_set: str = ""
    kind: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def probe(self) -> str:
        """The stated probe policy of morphs.

        Raises:
            ScoreError: when none, or an unknown one, was stated.
        """
        if self.probe_policy not in PROBE_POLICIES:
            raise ScoreError(
                f"probe policy {self.probe_policy!r}: this file has morphs and does not say which "
                "probes they met; state --probe source (the very images that made the morph) or "
                "--probe other (other images of the same people)"
            )
        return self.probe_policy

    def metadata(self, systems: Sequence[str]) -> dict[str, Any]:
        """Model fingerprint, alignment and data set that the user stated, as table metadata."""
        stated = {"model_fingerprint": self.model_fingerprint, "alignment": self.alignment}
        stated = {name: value for name, value in stated.items() if value}
        found: dict[str, Any] = {"systems": {s: dict(stated) for s in systems}} if stated else {}
        return found | ({"data_set": self.data_set} if self.data_set else {})

    def direction(self, path: Path) -> str:
        """The stated score type.

        Raises:
            ScoreError: when none, or an unknown one, was stated.
        """
        if self.score_type not in SCORE_TYPES:
            raise ScoreError(
                f"{path}: this format does not say which way scores point; score_type "
                f"{self.score_type!r}, expected {' or '.join(SCORE_TYPES)} (--score-type)"
            )
        return self.score_type


@dataclass
class Rows:
    """Collects rows with the place each came from and makes the table.

    Args:
        path: the file, for messages.
        labels: what the file does not say.
        score_type: of every row that does not say it.
        kinds_stated: whether the file or the user says which comparisons are mated; else equal ids
            do.
    """

    path: Path
    labels: Labels
    score_type: str
    kinds_stated: bool = False
    rows: list[dict[str, Any]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)

    def add(self, line: int, **row: Any) -> None:
        """A row from one line."""
        self.rows.append({"system": self.labels.system, "score_type": self.score_type, **row})
        self.lines.append(line)

    def morph(self, line: int, **row: Any) -> None:
        """A morph against a probe of one of its subjects."""
        stated = {"attack": self.labels.attack, "probe_policy": self.labels.probe}
        self.add(line, kind="morph", **{**stated, **row})

    def comparison(self, line: int, subject: str, reference: str, **row: Any) -> None:
        """A probe of one subject against a reference of the same or of another one."""
        kind = kind_by_ids(subject, reference)
        self.add(line, kind=kind, subject_id=subject, ref_subject_id=reference, **row)

    def image(self, line: int, name: str, attack: str | None, **row: Any) -> None:
        """A detector's score of an image: a morph of an attack, or bona fide where that is None.

        Raises:
            ScoreError: an attack without a name, or of the name that bona fide images have.
        """
        if attack == "":
            raise ScoreError(f"{self.path}:{line}: a morph needs the name of its attack (--attack)")
        morph = {"attack": BONA_FIDE}
        if attack is not None:
            morph = {"attack": named(self.path, line, "attack", attack), "morph_id": name}
        self.add(line, kind="mad", ref_id=name, **morph, **row)

    def table(self, **metadata: Any) -> ScoreTable:
        """The checked table; its errors name file and line."""
        if not self.rows:
            raise ScoreError(f"{self.path}: no score in this file")
        lines = np.array(self.lines, dtype=np.int64)
        found = ScoreTable.from_rows(
            self.rows, metadata=metadata, source=str(self.path), lines=lines
        )
        if not self.kinds_stated:
            refuse_unmatched_ids(found)
        return found


def kind_by_ids(subject: str, other: str) -> str:
    """`mated` where two ids are of one person, in whatever spelling, else `nonmated`."""
    return "mated" if canonical(subject) == canonical(other) else "nonmated"


def one_path(paths: Sequence[Path], expected: str, count: int = 1) -> list[Path]:
    """The paths, if there are as many as the format takes.

    Args:
        paths: Files that the user names.
        expected: What files they should be, for the message.
        count: How many the format has.

    Raises:
        ScoreError: naming what was expected.
    """
    if len(paths) != count:
        raise ScoreError(f"{len(paths)} files given, expected {count}: {expected}")
    if count == 2 and paths[0] == paths[1]:
        raise ScoreError(f"{paths[0]} is given twice, expected two files: {expected}")
    return list(paths)


def read_fields(
    path: Path, delimiter: str | None = None, quotechar: str | None = None
) -> Iterator[tuple[int, list[str]]]:
    """(line number, fields) of every non-empty line that is no comment (`#`).

    A line that begins with `#` and is else one of the scores, above them or among them, is refused:
    it may be an id.

    Args:
        path: The text file.
        delimiter: Between two fields; None for any run of blanks.
        quotechar: Around a field that holds the delimiter; None for no quotes.
    """
    if delimiter is None:
        texts = enumerate(read_text(path, ScoreError).splitlines(), start=1)
        lines = ((line, row) for line, text in texts if (row := text.split()))
    else:
        lines = read_csv(path, ScoreError, delimiter=delimiter, quotechar=quotechar)
    width, above = 0, []
    for line, row in lines:
        if row[0].startswith("#"):
            # What a line has to look like is seen from the first one without a mark.
            if width:
                _refuse_marked(path, line, row, width)
            else:
                above.append((line, row))
            continue
        if not width and any(map(_is_number, row[1:])):  # else it is a header, and all above words
            for place, marked in above:
                _refuse_marked(path, place, marked, len(row))
        width = len(row)
        yield line, row


def _refuse_marked(path: Path, line: int, row: Sequence[str], width: int) -> None:
    if len(row) == width and any(map(_is_number, row[1:])):
        raise ScoreError(
            f"{path}:{line}: {row[0]!r} begins with #, and the line has the fields of a score: "
            "delete it if it does not count, write the id without # if it does"
        )


def score_lines(
    path: Path,
    *headers: Sequence[str],
    delimiter: str | None = None,
    quotechar: str | None = None,
    fewest: int = 1,
) -> Iterator[tuple[int, list[str]]]:
    """`read_fields` of a format without a header, whose last field is a score.

    Args:
        path: The text file.
        headers: Names of the fields in their order. A first line of just these, which some programs
            write all the same, is passed over.
        delimiter, quotechar: As for `read_fields`.
        fewest: Fields of a line with a score.

    Raises:
        ScoreError: A first line with a word for its score: columns that are named otherwise may
            stand in another order.
    """
    lines = below_header(read_fields(path, delimiter, quotechar), *headers)
    for at, (line, row) in enumerate(lines):
        word = row[-1][:1].isalpha() and not _is_number(row[-1], finite=False)
        if not at and word and len(row) >= fewest:
            order = " or ".join(" ".join(names) for names in headers)
            raise ScoreError(
                f"{path}:{line}: score {row[-1]!r} is not a number. Is the line a header? This "
                f"format has none{order and f' but {order}'}: delete the line if the columns stand "
                "in the order of the format; a table of columns in any order, with a comma, a "
                "semicolon, a tab or a bar between them, is read by their names: adjointdeis-eval "
                f"convert --from generic {path} --columns score={row[-1]} ... --into scores.csv"
            )
        yield line, row


def below_header(
    lines: Iterable[tuple[int, list[str]]], *headers: Sequence[str]
) -> Iterator[tuple[int, list[str]]]:
    """Lines without the first one, if that names the fields as one of `headers` does."""
    known = [[name.casefold() for name in names] for names in headers]
    for at, (line, row) in enumerate(lines):
        if at or [field.casefold() for field in row] not in known:
            yield line, row


def _is_number(text: str, finite: bool = True) -> bool:
    try:
        finite_number(text) if finite else any_number(text)
    except ValueError:
        return False
    return True


def named(path: Path, line: int, column: str, text: str) -> str:
    """A field that says that a line is of a morph, or empty text where it is of none.

    Raises:
        ScoreError: what programs write for an absent value, or for an image that is no morph; as a
            name it would make a morph of every other comparison.
    """
    if text.casefold() in _NO_NAMES:
        raise ScoreError(
            f"{path}:{line}: {column} {text!r}: leave the field empty where there is no morph, and "
            "rename the morph or attack if that is its name"
        )
    return text


_NO_NAMES = (*("nan", "none", "null", "na", "n/a", "<na>", "-"), *("bonafide", "bona_fide"))


def number(path: Path, line: int, text: str) -> float:
    """A finite score from its text, or a ScoreError."""
    try:
        return finite_number(text)
    except ValueError as error:
        raise ScoreError(f"{path}:{line}: score {text!r} {error}") from None


def score_or_failure(path: Path, line: int, text: str) -> dict[str, Any]:
    """Fields `score` and `status` of a comparison; an empty field or NaN is a failure to acquire.

    Raises:
        ScoreError: anything else that is no finite number.
    """
    if text.strip().casefold() in ("", "nan"):
        return {"status": "fta"}
    return {"score": number(path, line, text)}


def expect(path: Path, line: int, fields: Sequence[str], names: Sequence[str]) -> None:
    """Refuses a line that has not as many fields as there are names."""
    if len(fields) != len(names):
        raise ScoreError(
            f"{path}:{line}: {len(fields)} fields, expected {len(names)}: {' '.join(names)}"
        )


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Writes text lines atomically."""
    write_atomically(path, "".join(line + "\n" for line in lines))


def joined_by_blanks(cells: Sequence[str], otherwise: str) -> str:
    """Fields with blanks between them; a ScoreError says `otherwise` if one is empty or has one."""
    if any(not cell or " " in cell for cell in cells):
        raise ScoreError(otherwise)
    return " ".join(cells)


def only(table: ScoreTable, column: str) -> str:
    """The one value of a column, for formats whose files cannot hold two.

    Raises:
        ScoreError: when there are several.
    """
    values = table.unique(column)
    if len(values) > 1:
        raise ScoreError(
            f"this format holds one {column} per file, the table has {', '.join(values)}; "
            "select one first"
        )
    return values[0] if values else ""


def refuse_failures(table: ScoreTable) -> None:
    """Refuses failed comparisons, for formats that cannot write one."""
    bad = np.flatnonzero(table["status"] != "ok")
    if len(bad):
        raise ScoreError(
            f"{table.place(int(bad[0]))}: this format cannot hold a failed comparison; "
            "write the canonical one, or drop such rows and say so"
        )
