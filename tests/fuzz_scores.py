"""Score files of this program and of others, sound ones to damage."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path


def _csv(*rows: str) -> bytes:
    return "\n".join(rows).encode() + b"\n"


BOB = [
    _csv(
        "bio_ref_subject_id,bio_ref_template_id,probe_subject_id,probe_key,probe_attack_type,score",
        "001,001_03,001,001_08,,0.7",
        "001,001_03,002,002_08,,.1",
        "001,001_03,003,m1,dim,0.5",
        "002,002_03,003,m1,dim,0.5",
    ),
    _csv("claimed_id,test_label,is_bonafide,attack_type,score", "1,a,True,,.9", "2,b,0,x,nan"),
    _csv("001 001 a 0.5", "001 002 b 0.1"),
    _csv("001 x 001 a 0.5", "001 y 002 b -1e-3"),
]
NIST = [
    _csv(
        "enrollImage verifImage score returnCode",
        "001_002.png 001_08.png 0.5 0",
        "001_002.png 002_08.png 0.4 0",
        "001_03.png 002_08.png -1 1",
    ),
    _csv("image isMorph score returnCode", "001_002.png 1 0.7 0", "003_03.png 0 -1 1"),
    _csv("image probeImage isMorph score returnCode", "001_002.png 001_08.png 1 0.7 0"),
]
MVR = [_csv("m1; 001; a; 0.5", "m1; 002; b; 0.5", "001; a; 002; b; 0.1", "001; a; 001; c; 0.9")]
OWN = [_csv("Morph;subject_id;probe_id;score", "m1;001;a;0,5", "m1;002;b;0,25")]
PYEER = [_csv("a b 0.5", "c d 1e-3")]
REVELIO = [_csv("0.5", "1e-3", "-1")]


def simulated() -> list[bytes]:
    """The canonical table of made-up comparisons."""
    from adjointdeis.evaluation import write_scores
    from adjointdeis.evaluation.simulate import synthetic_table

    table, _ = synthetic_table(systems=("a",), attacks={"x": 0.2}, n_subjects=4, n_morphs=3, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.csv"
        write_scores(table, path)
        return [path.read_bytes()]


def score_files() -> Iterator[tuple[str, Callable[[], list[bytes]], Callable[[Path], object]]]:
    """Name of a format, sound files, reader; formats of two files get the same one twice."""
    for name, files in (
        ("bob", BOB), ("nist", NIST), ("mvr", MVR), ("generic", OWN), ("pyeer", PYEER),
        ("revelio", REVELIO),
    ):  # fmt: skip
        yield name, lambda files=files: files, lambda path, name=name: _read(name, path)


def _read(name: str, path: Path) -> object:
    from adjointdeis.evaluation.formats import Labels, read

    mvr = name == "mvr"
    labels = Labels(score_type=None if mvr else "similarity", probe_policy="other")
    if name == "generic":
        labels = replace(labels, kind="morph", columns={"morph_id": "Morph"})
    # A file is not both sides of a comparison; by another way to it, it may be.
    again = path.parent / ".." / path.parent.name / path.name
    return read(name, [path, again][: 2 if name in ("pyeer", "revelio") else 1], labels)
