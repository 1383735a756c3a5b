"""Runs one experiment several times in a row, killing it at stated moments; used by test_restarts.

Each attempt is a fork of this process, so that the imports are paid once. A moment is a number of
files and a point in the life of the last of them: the temporary file was just opened, it is about
to take its place, it has taken its place. Or it is a number of seconds of processor time, wherever
the attempt is then: `[2.5, "cpu"]`. `python killed.py '<json>'`, with

    {"arguments": [...], "moments": [[4, "opened"], ...], "signal": 9}

prints the exit status of every attempt; the last one, which nobody disturbs, included. Attempts end
with the first that comes to its end. With `"multirun": true` the arguments are those of a sweep.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import lightning  # noqa: F401 - paid before the forks
import matplotlib.figure  # noqa: F401
import torch  # noqa: F401
from tiny_profile import ROOT, composed

import adjointdeis.harness.tasks.morph  # noqa: F401
from adjointdeis.harness.launch import launch
from adjointdeis.harness.program import run


def strike_at(number: int, point: str, signum: int) -> None:
    """Makes this process send itself a signal at a moment of its `number`-th file."""
    opened = replaced = 0
    make, replace = tempfile.mkstemp, os.replace

    def strike() -> None:
        os.kill(os.getpid(), signum)

    def counting_make(*args, **options):
        nonlocal opened
        made = make(*args, **options)
        opened += str(options.get("prefix", "")).startswith(".partial-")
        if point == "opened" and opened == number:
            strike()
        return made

    def counting_replace(*args, **options):
        nonlocal replaced
        replaced += 1
        if point == "before" and replaced == number:
            strike()
        replace(*args, **options)
        if point == "after" and replaced == number:
            strike()

    tempfile.mkstemp, os.replace = counting_make, counting_replace


def attempt(plan: dict, moment: list | None, signum: int) -> int:
    """Exit status of one attempt; negative for the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.environ["LOCAL_RANK"] = "0"
            if moment is not None and moment[1] != "cpu":
                strike_at(*moment, signum)
            if plan.get("multirun"):
                sys.argv = ["run.py", "-m", *plan["arguments"]]
                run(ROOT / "conf")
            else:
                launch(composed(plan["arguments"]))
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            print(end.code, file=sys.stderr)
        finally:
            sys.stdout.flush()
            os._exit(code)
    if moment is not None and moment[1] == "cpu":
        strike_after(child, moment[0], signum)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def strike_after(child: int, seconds: float, signum: int) -> None:
    """Sends a signal to a process once it has had so much processor time, unless it ends before."""
    tick = os.sysconf("SC_CLK_TCK")
    while True:
        user, system, state = statistics(child)
        if state == "Z":
            return
        if (user + system) / tick >= seconds:
            os.kill(child, signum)
            return
        time.sleep(0.005)


def statistics(child: int) -> tuple[int, int, str]:
    """Ticks of user and system time, and the state, of a process."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]), int(fields[12]), fields[0]


def main() -> None:
    """Attempts in a row; prints their statuses as JSON on the last line."""
    plan = json.loads(sys.argv[1])
    signum = plan.get("signal", signal.SIGKILL)
    statuses = []
    for moment in [*plan["moments"], None]:
        statuses.append(attempt(plan, moment, signum))
        if statuses[-1] == 0:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(json.dumps({"statuses": statuses, "cpu": used.ru_utime + used.ru_stime}))


if __name__ == "__main__":
    main()
