"""Whole programs in a bare environment: an ASCII locale, and no socket that nobody asked for."""

import os
import subprocess
from pathlib import Path

import pytest
from tiny_profile import command_line, composed, overrides

from adjointdeis.harness.command_line import setting
from adjointdeis.harness.trainer import make_trainer
from adjointdeis.harness.validation import ConfigError

GUARD = """
import os, socket

def refused(name):
    def call(*arguments, **options):
        # Of a process with itself: no network.
        if name != "getaddrinfo" and arguments[0].family == socket.AF_UNIX:
            return kept[name](*arguments, **options)
        with open(os.environ["GUARD"], "a") as file:
            file.write(f"{name} {arguments[1:]}\\n")
        raise OSError("no network in this test")
    return call

kept = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
for name in kept:
    setattr(socket.socket, name, refused(name))
socket.getaddrinfo = refused("getaddrinfo")
"""


def test_a_run_and_a_report_in_an_ascii_locale_open_no_socket(tiny, tmp_path, environ) -> None:
    """W&B is not asked for; the label, the folder and the report have letters beyond ASCII."""
    place = tmp_path / "f\u00f6lder"
    place.mkdir()
    (place / "sitecustomize.py").write_text(GUARD)
    log = tmp_path / "sockets.txt"
    path = os.pathsep.join([str(place), environ.get("PYTHONPATH", "")])
    bare = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "GUARD": str(log)}
    environ = {k: v for k, v in environ.items() if k not in ("LANG", "WANDB_MODE")} | bare
    environ["PYTHONPATH"] = path

    def run(arguments: list[str]) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command_line(arguments), cwd=place, env=environ, capture_output=True, timeout=540
        )
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        assert b"Traceback" not in done.stderr and b"Unicode" not in done.stderr
        return done

    lines = overrides(tiny, None, "data.limit=1", rows=("dim_a",))
    directory = place / "outputs" / "caf\u00e9"
    run(
        [
            *lines,
            setting("paths.root", place),
            setting("paths.run", directory),
            "rows.dim_a.label='DiM \u03b1'",
        ]
    )
    assert "DiM \u03b1" in (directory / "report.md").read_text(encoding="utf-8")
    done = run(["task=report", setting("paths.root", place)])
    assert done.stdout.isascii()
    made = Path(place / "outputs" / "report")
    assert "DiM \u03b1" in "".join(p.read_text(encoding="utf-8") for p in made.glob("*.md"))
    assert not log.exists(), log.read_text()


def test_a_device_that_is_not_there_is_told_of_by_its_key() -> None:
    cfg = composed(["+experiment=quickstart", "trainer=gpu", "trainer.devices=77"])
    with pytest.raises(ConfigError, match=r"trainer\.accelerator=gpu, trainer\.devices=77"):
        make_trainer(cfg, logger=False)
