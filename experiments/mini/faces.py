"""Writes the benchmark that ships with the package: 102 identities, neutral and smiling.

    python -m experiments.mini.faces --out <dir>

The pictures are stored and not rendered on demand because their bits may differ between torch
versions, and a benchmark may not. File names follow the Face Research Lab London set:
``NNN_03.png`` is neutral and ``NNN_08.png`` smiles.

References:
    Face Research Lab London Set: https://doi.org/10.6084/m9.figshare.5047666
"""

import argparse
import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from adjointdeis.files import write_atomically
from synthetic_faces.capture import Capture, sample_capture
from synthetic_faces.expression import Expression, neutral, smile
from synthetic_faces.identity import Identity, sample_identity
from synthetic_faces.landmarks import project, template_vertices
from synthetic_faces.pool import to_uint8
from synthetic_faces.pool_spec import GENERATOR_VERSION
from synthetic_faces.process import single_thread
from synthetic_faces.renderer import Renderer
from synthetic_faces.roles import identity_seed
from synthetic_faces.seeds import Streams

NEUTRAL, SMILE = "03", "08"
LANDMARKS = "landmarks.npz"
NOTICE = (
    "Synthetic rendering of a person who does not exist. Made by adjointdeis from CC0 MakeHuman "
    "data; no photograph was used."
)
_PER_SEX = 51
README = """# Synthetic benchmark faces

{subjects} identities, {size} x {size} pixels, one neutral (`NNN_03.png`) and one smiling
(`NNN_08.png`) studio picture each, and `subjects.csv` (subject_id, seed, sex, group).

Nobody in these pictures exists. They are renderings of a CC0 MakeHuman head (see
`synthetic_faces/data/ATTRIBUTION.md` in the package) and are dedicated to the public domain under
CC0 1.0 as well. `group` is the largest of three stylised ancestry weights, not a demographic.

Made by `python -m experiments.mini.faces`, generator version {version}. The identity seeds
are those of the role `test`, which no network of the package was trained or tuned on.

`landmarks.npz` holds 189 points of every picture, exact projections of fixed vertices of the
head; the first 68 are iBUG's.
"""


@dataclass(frozen=True)
class Person:
    """One identity of the benchmark; ``subject_id`` is a three-digit string."""

    subject_id: str
    seed: int
    identity: Identity


def choose_subjects(per_sex: int = _PER_SEX) -> list[Person]:
    """The first identities of role ``test``, skipping a sex once it has its share."""
    chosen: list[Person] = []
    count = {"female": 0, "male": 0}
    index = 0
    while len(chosen) < 2 * per_sex:
        seed = identity_seed("test", index)
        identity = sample_identity(seed)
        if count[identity.shape.sex] < per_sex:
            count[identity.shape.sex] += 1
            chosen.append(Person(f"{len(chosen) + 1:03d}", seed, identity))
        index += 1
    return chosen


def _pictures(subject: Person) -> Iterator[tuple[str, Expression, Capture]]:
    """Code, expression and capture of a subject's pictures, from its seed alone."""
    streams = Streams(subject.seed)
    amount = streams.uniform("benchmark smile amount", 0.75, 1.0)
    for code, face in (
        (NEUTRAL, neutral(streams("benchmark neutral face"))),
        (SMILE, smile(subject.identity.shape, amount)),
    ):
        yield code, face, sample_capture(streams(f"benchmark capture {code}"))


def _png(picture: torch.Tensor, subject: Person, expression: str) -> bytes:
    notes = PngInfo()
    for key, text in {
        "Description": NOTICE,
        "Copyright": "CC0 1.0",
        "Software": f"adjointdeis synthetic faces, generator {GENERATOR_VERSION}",
        "Title": f"subject {subject.subject_id}, seed {subject.seed}, {expression}",
    }.items():
        notes.add_itxt(key, text)
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(picture)).save(buffer, "PNG", optimize=True, pnginfo=notes)
    return buffer.getvalue()


def write_benchmark(
    directory: str | os.PathLike, per_sex: int = _PER_SEX, size: int = 64, progress: bool = True
) -> list[Person]:
    """Writes the pictures, ``subjects.csv`` and a README; existing files are replaced.

    Args:
        directory: where to.
        per_sex: identities per sex; the released benchmark has 51.
        size: side in pixels.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    renderer, subjects = Renderer(), choose_subjects(per_sex)
    with single_thread():
        for subject in tqdm(subjects, desc="benchmark faces", disable=not progress):
            for code, face, capture in _pictures(subject):
                picture = renderer.render(subject.identity, face, capture, size)
                name = f"{subject.subject_id}_{code}.png"
                png = _png(picture, subject, face.name)
                write_atomically(directory / name, lambda f, png=png: f.write(png), "wb")
    write_landmarks(directory / LANDMARKS, subjects, size)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["subject_id", "seed", "sex", "group"])
    for s in subjects:
        table.writerow([s.subject_id, s.seed, s.identity.shape.sex, s.identity.shape.group])
    write_atomically(directory / "subjects.csv", lambda f: f.write(text.getvalue()))
    readme = README.format(subjects=len(subjects), size=size, version=GENERATOR_VERSION)
    write_atomically(directory / "README.md", lambda f: f.write(readme))
    return subjects


def write_landmarks(path: Path, subjects: Sequence[Person], size: int = 64) -> None:
    """Writes the landmarks of every picture, which the seeds determine: no picture is rendered.

    Args:
        path: the ``.npz`` file: ``stems`` such as 001_03, ``points`` (pictures, 189, 2) in pixels,
            pixel centres at integers, of which the first 68 are iBUG's, and ``size``.
        subjects: whose.
        size: side of the pictures in pixels.
    """
    renderer = Renderer()
    vertices = list(template_vertices(renderer.assets))
    stems, points = [], []
    for subject in subjects:
        for code, face, capture in _pictures(subject):
            stems.append(f"{subject.subject_id}_{code}")
            points.append(project(renderer, subject.identity, face, capture, size)[vertices])
    # A hundredth of a pixel, in a quarter of the space of what nobody could see.
    rounded = np.float32(np.round(np.stack(points), 2))
    content = io.BytesIO()
    np.savez_compressed(content, stems=np.array(stems), points=rounded, size=np.int64(size))
    write_atomically(path, lambda file: file.write(content.getvalue()), "wb")


def main() -> None:
    """Command line: ``--out`` the folder to write, ``--landmarks`` for theirs alone."""
    parser = argparse.ArgumentParser(description="Write the frozen synthetic benchmark.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--landmarks", action="store_true", help="write the landmarks only")
    arguments = parser.parse_args()
    if arguments.landmarks:
        write_landmarks(arguments.out / LANDMARKS, choose_subjects())
        return
    subjects = write_benchmark(arguments.out)
    print(f"{arguments.out}: {len(subjects)} subjects, {2 * len(subjects)} pictures")


if __name__ == "__main__":
    main()
