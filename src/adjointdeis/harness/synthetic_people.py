"""Folders of synthetic people in the form of a benchmark: neutral and smiling, with landmarks.

The benchmark that ships with the package is one (``experiments/mini/faces.py`` writes it), and the
people that detectors learn from are another, of identities of their own. File names follow the
Face Research Lab London set: ``NNN_03.png`` is neutral and ``NNN_08.png`` smiles.

References:
    Face Research Lab London Set: https://doi.org/10.6084/m9.figshare.5047666
"""

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

from adjointdeis.faces.datasets.folder import NEUTRAL, SMILING
from adjointdeis.files import write_atomically, write_csv
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

LANDMARKS = "landmarks.npz"
NOTICE = (
    "Synthetic rendering of a person who does not exist. Made by adjointdeis from CC0 MakeHuman "
    "data; no photograph was used."
)
README = """# {title}

{subjects} identities, {size} x {size} pixels, one neutral (`NNN_03.png`) and one smiling
(`NNN_08.png`) studio picture each, and `subjects.csv` (subject_id, seed, sex, group).

Nobody in these pictures exists. They are renderings of a CC0 MakeHuman head (see
`synthetic_faces/data/ATTRIBUTION.md` in the package) and are dedicated to the public domain under
CC0 1.0 as well. `group` is the largest of three stylised ancestry weights, not a demographic.

{made_by}

`landmarks.npz` holds 189 points of every picture, exact projections of fixed vertices of the
head; the first 68 are iBUG's.
"""


@dataclass(frozen=True)
class Person:
    """One identity; ``subject_id`` is a string of three digits or more."""

    subject_id: str
    seed: int
    identity: Identity


def choose_subjects(per_sex: int, role: str = "test", prefix: str = "") -> list[Person]:
    """The first identities of a role, skipping a sex once it has its share.

    Args:
        per_sex: identities per sex.
        role: name of a set of seeds, see :mod:`synthetic_faces.roles`; two roles share nobody.
        prefix: letters before the digits of each id, so that two folders have no id in common.
    """
    chosen: list[Person] = []
    count = {"female": 0, "male": 0}
    index = 0
    while len(chosen) < 2 * per_sex:
        seed = identity_seed(role, index)
        identity = sample_identity(seed)
        if count[identity.shape.sex] < per_sex:
            count[identity.shape.sex] += 1
            chosen.append(Person(f"{prefix}{len(chosen) + 1:03d}", seed, identity))
        index += 1
    return chosen


def _pictures(subject: Person) -> Iterator[tuple[str, Expression, Capture]]:
    """Code, expression and capture of a subject's pictures, from its seed alone."""
    streams = Streams(subject.seed)
    amount = streams.uniform("benchmark smile amount", 0.75, 1.0)
    for code, face in (
        (NEUTRAL, neutral(streams("benchmark neutral face"))),
        (SMILING, smile(subject.identity.shape, amount)),
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


def write_people(
    directory: str | os.PathLike,
    subjects: Sequence[Person],
    size: int = 64,
    title: str = "Synthetic faces",
    made_by: str = "",
    progress: bool = True,
) -> None:
    """Writes the pictures, their landmarks, ``subjects.csv`` and a README; files are replaced.

    Args:
        directory: where to.
        subjects: the people to render.
        size: side in pixels.
        title, made_by: heading and last words of the README.
        progress: show a bar.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    renderer = Renderer()
    with single_thread():
        for subject in tqdm(subjects, desc=title.lower(), disable=not progress):
            for code, face, capture in _pictures(subject):
                picture = renderer.render(subject.identity, face, capture, size)
                name = f"{subject.subject_id}_{code}.png"
                png = _png(picture, subject, face.name)
                write_atomically(directory / name, png)
    write_landmarks(directory / LANDMARKS, subjects, size)
    table = [(s.subject_id, s.seed, s.identity.shape.sex, s.identity.shape.group) for s in subjects]
    write_csv(directory / "subjects.csv", [("subject_id", "seed", "sex", "group"), *table])
    readme = README.format(title=title, subjects=len(subjects), size=size, made_by=made_by)
    write_atomically(directory / "README.md", readme)


def write_landmarks(path: Path, subjects: Sequence[Person], size: int = 64) -> None:
    """Writes the landmarks of every picture, which the seeds determine: no picture is rendered.

    Args:
        path: the ``.npz`` file: ``stems`` such as 001_03, ``points`` (pictures, 189, 2) in pixels,
            pixel centres at integers, of which the first 68 are iBUG's, and ``size``.
        subjects: the people whose landmarks are written.
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
    write_atomically(path, content.getvalue())
