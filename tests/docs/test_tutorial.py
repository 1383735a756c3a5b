"""The tutorial runs from start to end and shows what its text says."""

import os
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
TUTORIAL = DOCS / "tutorial.ipynb"

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")


def printed(notebook) -> str:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


@pytest.fixture(scope="module")
def executed():
    notebook = nbformat.read(TUTORIAL, as_version=4)
    # The suite draws to files; a notebook draws into its page.
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(DOCS), env=environment)
    return notebook


def test_guidance_reaches_the_target(executed) -> None:
    before, after = re.search(
        r"mean loss ([\d.]+) before, ([\d.]+) after", printed(executed)
    ).groups()
    assert float(after) < 0.05 * float(before)


def test_the_exact_adjoint_is_exact_and_the_continuous_one_is_not(executed) -> None:
    errors = {
        name: [float(value) for value in re.findall(r"N=\d+: (\S+)", line)]
        for name, line in re.findall(r"^(\S+)\s+(N=10:.*)$", printed(executed), re.M)
    }
    assert max(errors["DiscreteAdjoint"]) < 1e-5
    assert min(errors["AdjointDEIS-1"]) > 1e-2
    # First order in the limit: half the step, about half the error.
    assert errors["AdjointDEIS-1"][-2] / errors["AdjointDEIS-1"][-1] == pytest.approx(2, abs=0.5)


def test_stored_outputs_are_of_this_code(executed) -> None:
    """The page shows stored outputs; they must be those of the cells as they are now."""
    stored = nbformat.read(TUTORIAL, as_version=4)
    figures = [
        sum("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        for notebook in (stored, executed)
        for cell in notebook.cells
    ]
    half = len(figures) // 2
    assert figures[:half] == figures[half:]
    assert sum(figures[:half]) >= 4
    # The numbers vary in the last digits with the processor, the words around them do not.
    words = [re.sub(r"[\d.e+-]+", "#", printed(notebook)) for notebook in (stored, executed)]
    assert words[0] == words[1]
