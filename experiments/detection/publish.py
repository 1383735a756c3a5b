"""Puts the detectors of a finished run among the embedded files, with their cards.

python run.py +experiment=detection
python -m experiments.detection.publish --run outputs/detection
"""

import argparse
import shutil
from pathlib import Path

import numpy as np

from adjointdeis.faces.weights import fingerprint, read_header
from adjointdeis.files import write_atomically
from adjointdeis.harness.detectors import EMBEDDED

TRAINED_ON = "all"
CARDS = """# The embedded detectors of morphs

Made by `python run.py +experiment=detection` and `python -m experiments.detection.publish`: of
every trained detector the one named `{trained_on}`. MIT, as the rest. Use them with
`+task.weights.lbp=mini`.

* **Intended use**: trying the loop of attack, degradation and detection without training; a start
  to compare your own detector with, on the embedded synthetic faces.
* **Not for**: photographs of people, or any decision about a person or a document. They have seen
  300 synthetic heads of 64 pixels.
* **Known faults**: all but `difference` call bona fide images that were encoded and decoded by the
  embedded autoencoder morphs; none of the single-image ones survives a print
  ([what was measured](../../../../../experiments/detection/README.md)).

| file | SHA-256 | trained on |
|---|---|---|
{rows}
"""


def cards(folder: Path) -> str:
    """The page of a folder of detectors: what each was trained on, and its hash."""
    rows = [
        f"| {path.name} | {fingerprint(path)} | {examples(path)} |"
        for path in sorted(folder.iterdir())
        if path.suffix in (".npz", ".safetensors")
    ]
    return CARDS.format(trained_on=TRAINED_ON, rows="\n".join(rows))


def examples(path: Path) -> str:
    """What a detector's file says that it was trained on."""
    if path.suffix == ".safetensors":
        return read_header(path)["training"]["examples"]
    with np.load(path, allow_pickle=False) as stored:
        return str(stored["training"])


def publish(run: Path, folder: Path) -> None:
    """Copies the detectors of a run and writes their cards.

    Args:
        run: Folder of a finished run of ``+experiment=detection``.
        folder: Where to.

    Raises:
        FileNotFoundError: The run has no detectors.
    """
    found = sorted((run / "detectors").glob(f"*/{TRAINED_ON}.*"))
    if not found:
        raise FileNotFoundError(f"{run}/detectors holds none of {TRAINED_ON}; finish the run")
    folder.mkdir(parents=True, exist_ok=True)
    for path in found:
        shutil.copyfile(path, folder / f"{path.parent.name}{path.suffix}")
    write_atomically(folder / "CARDS.md", cards(folder))


def main() -> None:
    """Command line: ``--run`` the finished run."""
    parser = argparse.ArgumentParser(description="Publish the detectors of a run.")
    parser.add_argument("--run", type=Path, default=Path("outputs/detection"), help="its folder")
    publish(parser.parse_args().run, EMBEDDED)


if __name__ == "__main__":
    main()
