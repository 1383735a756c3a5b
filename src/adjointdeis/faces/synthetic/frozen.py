"""Writes the benchmark that ships with the package: 102 identities, neutral and smiling.

    python -m adjointdeis.faces.synthetic.frozen --out <dir>

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
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from adjointdeis.faces.synthetic.capture import sample_capture
from adjointdeis.faces.synthetic.expression import neutral, smile
from adjointdeis.faces.synthetic.identity import Identity, sample_identity
from adjointdeis.faces.synthetic.pool import to_uint8
from adjointdeis.faces.synthetic.pool_spec import GENERATOR_VERSION
from adjointdeis.faces.synthetic.process import single_thread
from adjointdeis.faces.synthetic.renderer import Renderer
from adjointdeis.faces.synthetic.roles import identity_seed
from adjointdeis.faces.synthetic.seeds import Streams
from adjointdeis.files import write_atomically

NEUTRAL, SMILE = "03", "08"
NOTICE = (
    "Synthetic rendering of a person who does not exist. Made by adjointdeis from CC0 MakeHuman "
    "data; no photograph was used."
)
_PER_SEX = 51
_README = """# Synthetic benchmark faces

{subjects} identities, {size} x {size} pixels, one neutral (`NNN_03.png`) and one smiling
(`NNN_08.png`) studio picture each, and `subjects.csv` (subject_id, seed, sex, group).

Nobody in these pictures exists. They are renderings of a CC0 MakeHuman head (see
`faces/synthetic/data/ATTRIBUTION.md` in the package) and are dedicated to the public domain under
CC0 1.0 as well. `group` is the largest of three stylised ancestry weights, not a demographic.

Made by `python -m adjointdeis.faces.synthetic.frozen`, generator version {version}. The identity
seeds are those of the role `test`, which no network of the package was trained or tuned on.
"""


@dataclass(frozen=True)
class Subject:
    """One identity of the benchmark; ``subject_id`` is a three-digit string."""

    subject_id: str
    seed: int
    identity: Identity


def choose_subjects(per_sex: int = _PER_SEX) -> list[Subject]:
    """The first identities of role ``test``, skipping a sex once it has its share."""
    chosen: list[Subject] = []
    count = {"female": 0, "male": 0}
    index = 0
    while len(chosen) < 2 * per_sex:
        seed = identity_seed("test", index)
        identity = sample_identity(seed)
        if count[identity.shape.sex] < per_sex:
            count[identity.shape.sex] += 1
            chosen.append(Subject(f"{len(chosen) + 1:03d}", seed, identity))
        index += 1
    return chosen


def _png(picture: torch.Tensor, subject: Subject, expression: str) -> bytes:
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
) -> list[Subject]:
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
            streams = Streams(subject.seed)
            amount = streams.uniform("benchmark smile amount", 0.75, 1.0)
            for code, face in (
                (NEUTRAL, neutral(streams("benchmark neutral face"))),
                (SMILE, smile(subject.identity.shape, amount)),
            ):
                capture = sample_capture(streams(f"benchmark capture {code}"))
                picture = renderer.render(subject.identity, face, capture, size)
                name = f"{subject.subject_id}_{code}.png"
                png = _png(picture, subject, face.name)
                write_atomically(directory / name, lambda f, png=png: f.write(png), "wb")
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["subject_id", "seed", "sex", "group"])
    for s in subjects:
        table.writerow([s.subject_id, s.seed, s.identity.shape.sex, s.identity.shape.group])
    write_atomically(directory / "subjects.csv", lambda f: f.write(text.getvalue()))
    readme = _README.format(subjects=len(subjects), size=size, version=GENERATOR_VERSION)
    write_atomically(directory / "README.md", lambda f: f.write(readme))
    return subjects


def main() -> None:
    """Command line: ``--out`` the folder to write."""
    parser = argparse.ArgumentParser(description="Write the frozen synthetic benchmark.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    subjects = write_benchmark(arguments.out)
    print(f"{arguments.out}: {len(subjects)} subjects, {2 * len(subjects)} pictures")


if __name__ == "__main__":
    main()
