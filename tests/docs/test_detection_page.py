"""docs/detection.md: its snippet runs, its commands compose, its options exist."""

import re
import shlex

import pytest
from tiny_profile import ROOT

from adjointdeis.harness.command_line import check_overrides

PAGE = (ROOT / "docs" / "detection.md").read_text()
CONF = ROOT / "conf"


def commands() -> list[list[str]]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.M | re.S)
    blocks = [block for kind, block in fenced if not kind]
    lines = [line for block in blocks for line in block.splitlines() if "run.py" in line]
    return [words[2:] for line in lines if (words := shlex.split(line, comments=True))]


def test_the_snippet_runs() -> None:
    pytest.importorskip("sklearn")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    exec(compile(snippet, "detection.md", "exec"), {})


def test_commands_compose() -> None:
    found = commands()
    assert len(found) >= 7
    for words in found:
        check_overrides(CONF, [*words, "paths.root=."])


@pytest.mark.parametrize("group", ["detector", "degradation"])
def test_every_option_is_on_the_page(group: str) -> None:
    options = {path.stem for path in (CONF / group).glob("*.yaml")} - {"none"}
    assert options and not [name for name in options if f"`{name}`" not in PAGE]
