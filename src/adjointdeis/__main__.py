"""The installed commands: `adjointdeis` does what `run.py` does in a checkout, without one."""

import os
import sys
import warnings
from pathlib import Path

from adjointdeis.extras import MissingPackageError
from adjointdeis.terminal import prepare
from adjointdeis.texts import printable


def main() -> None:
    """`adjointdeis ...`, also `python -m adjointdeis ...`: composes a configuration and runs it."""
    # Threads that spin while they wait bring a busy machine to a halt; set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    prepare()
    try:
        from adjointdeis.harness.program import run
    except MissingPackageError as error:
        sys.exit(f"adjointdeis: {error}")
    run(configurations())


def evaluation() -> None:
    """`adjointdeis-eval ...`: rates from score files; needs scipy and no torch."""
    prepare()
    # A warning is a sentence to the user; the line that raised it says nothing.
    warnings.formatwarning = lambda message, category, *_: (
        f"{category.__name__}: {printable(message, chr(10))}\n"
    )
    try:
        from adjointdeis.evaluation.cli import main
    except MissingPackageError as error:
        sys.exit(f"adjointdeis-eval: {error}")
    sys.exit(main())


def configurations() -> Path:
    """The folder `conf`: inside an installed package, at the top of a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


if __name__ == "__main__":
    main()
