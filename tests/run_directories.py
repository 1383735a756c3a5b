"""What two run directories have in common: everything but the clock and the folder."""

import json
import re
from pathlib import Path

CLOCK = (
    "created",
    "seconds",
    "seconds_of_last_session",
    "wall_seconds",
    "seconds_per_pair",
    "sizes",
    "git",
    "command",
)


def plain(value):
    """A result without what the clock and the folder decide."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items() if key not in CLOCK}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    return value


_CLOCKS = re.compile(r"\d{4}-\d\d-\d\d(T[\d:+]+)?|\b[0-9a-f]{12}\b|\d[\d.]* ?(ms|s|min|h)\b")
"""Of a report: dates, the revision of the code, durations."""


def contents(run: Path) -> dict[str, object]:
    """What a run directory holds: bytes of every file; of JSON and reports all but the clock.

    Left out are curves and W&B files, which are kept per session, and what is in the files whose
    every line names the folder or a time: of the configuration, `run.json` and checkpoints, that
    they are there; of `done.json` the list of files. Pages of the leaderboard are of its times,
    whose other numbers are in `result.json`.
    """
    found: dict[str, object] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir() or name.startswith(("logs/", "wandb/")):
            continue
        if path.name in ("config.yaml", "run.json") or "leaderboard." in name or ".ckpt" in name:
            found[name] = None
            assert path.stat().st_size > 0, name
        elif path.name == "done.json":
            done = json.loads(path.read_text())
            found[name] = {**plain(done), "files": sorted(done["files"])}
        elif path.suffix == ".json":
            found[name] = plain(json.loads(path.read_text()))
        elif path.suffix in (".md", ".html"):
            text = _CLOCKS.sub("", path.read_text().replace(str(run), ""))
            found[name] = re.sub("[ -]+", " ", text)  # columns are as wide as their durations
        else:
            found[name] = path.read_bytes()
    return found


def assert_same(one: Path, other: Path) -> None:
    first, second = contents(one), contents(other)
    assert sorted(first) == sorted(second)
    for name, value in first.items():
        assert value == second[name], name
