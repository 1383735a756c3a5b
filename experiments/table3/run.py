"""Table 3 from the class attributes, beside the paper's.

python -m experiments.table3.run            print the table
python -m experiments.table3.run --write    put it into README.md
"""

import re
import sys
from pathlib import Path

from adjointdeis.evaluation.markdown import table
from adjointdeis.evaluation.paper import paper_table
from adjointdeis.gradients import GradientMethod
from adjointdeis.gradients.catalogue import CATALOGUE

METHODS = ("DiffPure", "AdjointDPM", "AdjointDEIS")

# The test that proves each method here, and the experiment that measures it.
WORKS = {
    "DiffPure": ("tests/gradients/test_sde_backsolve.py", "gradient_fidelity/README.md"),
    "AdjointDPM": ("tests/gradients/test_black_box_adjoints.py", "gradient_fidelity/README.md"),
    "AdjointDEIS": ("tests/gradients/test_adjoint_formulas.py", "gradient_fidelity/README.md"),
}

# Cells in which this package differs from the paper's table, and why.
DIFFERENCES: dict[tuple[str, str], str] = {
    ("DiffPure", "discretisation domain"): "solved over rho, where the linear term drops out",
    ("DiffPure", "exponential integrators"): "the change to rho integrates the linear term",
    ("DiffPure", "interoperability with existing samplers"): "the sampling run is any solver's",
    ("AdjointDPM", "interoperability with existing samplers"): "the sampling run is any solver's",
}


def method_of(name: str) -> type[GradientMethod] | None:
    """The class that stands for a method of the paper."""
    kinds = [type(one.method()) for one in CATALOGUE if one.paper == name]
    return next((kind for kind in kinds if kind.adjoint is not None), None)


def here(kind: type[GradientMethod]) -> dict[str, str]:
    """The cells of a method, from its attributes."""
    adjoint = kind.adjoint
    assert adjoint is not None
    words = {True: "yes", False: "no"}
    return {
        "discretisation domain": f"eps over {adjoint.clock}",
        "solver type": adjoint.integrator,
        "exponential integrators": words[adjoint.exponential],
        "closed-form SDE coefficients": words[adjoint.sde_coefficients],
        "interoperability with existing samplers": words[adjoint.any_sampler],
        "decoupled ODE schedule": words[adjoint.own_steps],
        "supports SDEs": words[kind.sde],
    }


def paper(name: str) -> dict[str, str]:
    """The paper's column of a method."""
    return {row["property"]: row[name] for row in paper_table("table3")}


def comparison() -> str:
    """The paper's rows; where we differ, ours stands first and the paper's in brackets."""
    kinds = {name: method_of(name) for name in METHODS}
    rows = []
    for name in paper(METHODS[0]):
        cells = []
        for method, kind in kinds.items():
            theirs = paper(method)[name]
            ours = "-" if kind is None else here(kind)[name]
            cells.append(ours if ours == theirs else f"{ours} (paper: {theirs})")
        rows.append([name, *cells])
    rows.append(["works here", *(_works(name) for name in kinds)])
    header = [n if k is None else f"{n} (`{k.__name__}`)" for n, k in kinds.items()]
    return table(["property", *header], rows)


def _works(name: str) -> str:
    test, experiment = WORKS[name]
    return f"[test](../../{test}), [measured](../{experiment})"


def written(readme: str) -> str:
    """A README with its table made anew, between its markers."""
    pattern = r"(<!-- adjoints -->\n).*?(<!-- end -->)"
    return re.sub(pattern, lambda m: f"{m[1]}{comparison()}\n{m[2]}", readme, flags=re.S)


if __name__ == "__main__":
    print(comparison())
    if "--write" in sys.argv:
        page = Path(__file__).with_name("README.md")
        page.write_text(written(page.read_text()))
