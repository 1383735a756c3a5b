"""The program with its imports already made, which take longer than most runs in the tests.

Reads orders, a JSON object a line, and forks for each: the child is `python run.py ...` in a folder
and an environment of its own, with a standard output and error of its own. Prints the exit status
of each, negative for the signal that ended it.
"""

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import lightning  # noqa: F401 - paid before the forks
import matplotlib.figure  # noqa: F401
from tiny_profile import ROOT

import adjointdeis.harness.tasks.morph  # noqa: F401
from adjointdeis.harness.command_line import check_overrides


def become(order: dict[str, Any]) -> None:
    """Makes this process the one that was ordered; returns where that would end."""
    for number, name in enumerate((os.devnull, order["stdout"], order["stderr"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC * bool(number)), number)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environ"])
    sys.path[:0] = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    _, program, *arguments = order["command"]
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    check_overrides(ROOT / "conf", ["+experiment=quickstart"])  # imports what it looks at
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(json.loads(line))
            sys.exit()
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
