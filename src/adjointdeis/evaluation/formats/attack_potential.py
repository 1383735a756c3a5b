"""Files of the Morphing Attack Potential script: one table per recogniser and a JSON of thresholds.

`<system>.txt` holds `morph<TAB>subject<TAB>score1<TAB>...<TAB>scoreN`, one line per morph and
contributing subject; `FRS_Info.json` holds `{"<system>": [threshold, is_similarity]}`. Where every
morph has the same subject ids (`S1`, `S2`), they are roles and not people; they are then read as
`<morph>/S1`, so that no two morphs seem to share a person.

References:
    | Morph-Attack-Potential
    | https://github.com/MatteoFerrara/Morph-Attack-Potential
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adjointdeis.evaluation.errors import ScoreError
from adjointdeis.evaluation.formats.text import (
    Labels,
    Rows,
    number,
    one_path,
    only,
    refuse_failures,
    score_lines,
    write_lines,
)
from adjointdeis.evaluation.scores import ScoreTable, concatenate
from adjointdeis.evaluation.storage import write_json
from adjointdeis.evaluation.thresholds import ThresholdRecord
from adjointdeis.files import read_json

INFO = "FRS_Info.json"


def read(paths: Sequence[Path], labels: Labels) -> ScoreTable:
    """Reads a folder of `<system>.txt` with `FRS_Info.json` in it or in its parent, or one file.

    A single file takes its direction from the JSON, or from `labels` without one.
    """
    path = one_path(paths, "a folder of <system>.txt, or one such file")[0]
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise ScoreError(f"{path}: no <system>.txt in this folder")
    folder = path if path.is_dir() else path.parent
    found = next((p for p in (folder / INFO, folder.parent / INFO) if p.is_file()), None)
    info = {} if found is None else _read_info(found)
    tables = []
    for file in files:
        if file.stem in info:
            direction = "similarity" if info[file.stem][1] else "dissimilarity"
        else:
            direction = labels.direction(file)
        tables.append(_read_one(file, direction, labels))
    return concatenate(tables)


def _read_info(path: Path) -> dict[str, tuple[float, bool]]:
    """System -> (threshold, whether scores are similarities).

    Raises:
        ScoreError: naming the file and the key.
    """
    found = read_json(path, ScoreError)
    if not isinstance(found, dict):
        raise ScoreError(f"{path}: expected an object of systems")
    info = {}
    for system, value in found.items():
        good = isinstance(value, list) and len(value) == 2 and isinstance(value[1], bool)
        if not good or isinstance(value[0], bool) or not isinstance(value[0], int | float):
            raise ScoreError(f"{path}: {system!r}: expected [threshold, is_similarity]")
        info[system] = (float(value[0]), value[1])
    return info


def read_thresholds(path: Path, target_fmr: float) -> list[ThresholdRecord]:
    """The thresholds of the JSON as literals; the file does not say their FMR, the caller must."""
    return [
        ThresholdRecord.literal(
            value,
            target_fmr=target_fmr,
            score_type="similarity" if similarity else "dissimilarity",
            model=system,
            note=f"from {path.name}",
        )
        for system, (value, similarity) in _read_info(path).items()
    ]


def _read_one(path: Path, direction: str, labels: Labels) -> ScoreTable:
    entries: list[tuple[int, str, str, list[float]]] = []
    by_morph: dict[str, set[str]] = {}
    for line, fields in score_lines(path, fewest=3):
        if len(fields) < 3:
            raise ScoreError(f"{path}:{line}: expected morph, subject and at least one score")
        morph, subject = fields[:2]
        if subject in by_morph.setdefault(morph, set()):
            raise ScoreError(f"{path}:{line}: morph {morph!r}, subject {subject!r} appears twice")
        by_morph[morph].add(subject)
        entries.append((line, morph, subject, [number(path, line, x) for x in fields[2:]]))
    roles = len(by_morph) > 1 and len({frozenset(s) for s in by_morph.values()}) == 1
    rows = Rows(path, labels, direction)
    for line, morph, subject, scores in entries:
        width = len(str(len(scores)))
        for attempt, score in enumerate(scores, start=1):
            rows.morph(
                line,
                system=path.stem,
                morph_id=morph,
                subject_id=f"{morph}/{subject}" if roles else subject,
                probe_id=f"{attempt:0{width}d}",
                score=score,
            )
    return rows.table()


def write(table: ScoreTable, paths: Sequence[Path]) -> None:
    """Writes a folder; a table has no thresholds, so the JSON gets 0.0 until `write_info`.

    Raises:
        ScoreError: several attacks or policies, or failed comparisons.
    """
    folder = one_path(paths, "a folder")[0]
    morphs = table.select(kind="morph")
    refuse_failures(morphs)
    for column in ("attack", "probe_policy"):
        only(morphs, column)
    info: dict[str, list[object]] = {}
    for system in morphs.unique("system"):
        rows = morphs.select(system=system)
        order = np.lexsort((rows["probe_id"], rows["subject_id"], rows["morph_id"]))
        grouped: dict[tuple[str, str], list[str]] = {}
        for at in order:
            key = (str(rows["morph_id"][at]), str(rows["subject_id"][at]))
            grouped.setdefault(key, []).append(repr(float(rows["score"][at])))
        lines = []
        for (morph, subject), scores in grouped.items():
            lines.append("\t".join([morph, subject.removeprefix(f"{morph}/"), *scores]))
        write_lines(folder / f"{system}.txt", lines)
        info[system] = [0.0, rows["score_type"][0] == "similarity"]
    write_json(info, folder / INFO)


def write_info(records: Sequence[ThresholdRecord], path: Path) -> None:
    """Writes the JSON of thresholds from records, one per system.

    Raises:
        ScoreError: when two records are of one system.
    """
    info = {r.model: [r.value, r.score_type == "similarity"] for r in records}
    if len(info) != len(records):
        raise ScoreError("this format holds one threshold per system")
    write_json(info, path)
