"""What two run directories have in common: everything but the clock and the folder."""

import json
from pathlib import Path

CLOCK = (
    "created",
    "seconds",
    "seconds_of_last_session",
    "wall_seconds",
    "seconds_per_pair",
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


def contents(run: Path) -> dict[str, object]:
    """What a run directory holds: bytes of morphs and scores, values of records and results."""
    found: dict[str, object] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_dir() or name.startswith("logs/"):
            continue  # curves are kept per session
        if name.startswith(("morphs/", "sources/")) and path.suffix == ".png":
            found[name] = path.read_bytes()
        elif name.startswith("morphs/") or name == "result.json":
            found[name] = plain(json.loads(path.read_text()))
        elif name == "scores.csv":
            found[name] = path.read_bytes()
        else:
            found[name] = None  # holds times or paths: that it is there, and not empty
            assert path.stat().st_size > 0, name
    return found


def assert_same(one: Path, other: Path) -> None:
    first, second = contents(one), contents(other)
    assert sorted(first) == sorted(second)
    for name, value in first.items():
        assert value == second[name], name
