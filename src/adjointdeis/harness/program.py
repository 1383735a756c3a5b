"""The program behind the installed command `adjointdeis`; `run.py` is the same in a checkout."""

import sys
from pathlib import Path

import hydra

from adjointdeis.harness.command_line import checked
from adjointdeis.harness.launch import launch


def run(configurations: Path) -> None:
    """Composes a configuration from the command line, then runs its task.

    Args:
        configurations: Folder that holds `config.yaml`, absolute.
    """
    sys.argv[1:] = _from_here(sys.argv[1:])
    program = hydra.main(version_base="1.3", config_path=str(configurations), config_name="config")
    with checked(configurations):
        program(launch)()


def _from_here(arguments: list[str]) -> list[str]:
    """A command line whose `--config-path` is absolute.

    Hydra reads it relative to the program's own file, where an installed program keeps no
    configuration of its user's.

    Args:
        arguments: The command line without the program.
    """
    found = list(arguments)
    for k, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config-path", "-cp"):
            continue
        if equals:
            found[k] = f"{flag}={Path(value).absolute()}"
        elif k + 1 < len(found):
            found[k + 1] = str(Path(found[k + 1]).absolute())
    return found
