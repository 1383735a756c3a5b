"""Table 2 from the class attributes, beside the paper's.

python -m experiments.table2.run            print both tables
python -m experiments.table2.run --write    put them into README.md
"""

import re
import sys
from pathlib import Path

from adjointdeis.evaluation.markdown import table
from adjointdeis.evaluation.paper import paper_table
from adjointdeis.gradients.catalogue import CATALOGUE
from experiments.table2.algorithms import ALGORITHMS, ComparedMethod

COLUMNS = {
    "ode": "ODE",
    "sde": "SDE",
    "optimises_x_T": "optimises x_T",
    "optimises_z_theta": "optimises z, theta",
}

# Cells in which this package differs from the paper's table, and why.
DIFFERENCES: dict[tuple[str, str], str] = {
    ("FreeDoM", "ode"): "one product through the data prediction needs no noise; DDIM works",
    (
        "DiffPure",
        "ode",
    ): "any sampler; the authors' own code has an ODE variant",
    ("Implicit Diffusion", "optimises_x_T"): "its algorithm moves the weights of the sampler only",
}


def here(one: ComparedMethod) -> dict[str, bool]:
    """The four cells of an algorithm, from the attributes of what it uses."""
    moves = one.moves()
    return {
        "ode": one.supports("ode"),
        "sde": one.supports("sde"),
        "optimises_x_T": "x_T" in moves,
        "optimises_z_theta": "z" in moves or "theta" in moves,
    }


def paper() -> dict[str, dict[str, bool]]:
    """The paper's cells."""
    return {
        row["method"]: {name: row[name] == "yes" for name in COLUMNS}
        for row in paper_table("table2")
    }


def word(cell: bool) -> str:
    """A cell as the paper prints it."""
    return "yes" if cell else "no"


def guidance_table() -> str:
    """The paper's rows; where we differ, ours stands first and the paper's in brackets."""
    printed, rows = paper(), []
    for one in ALGORITHMS:
        cells = []
        for name, ours in here(one).items():
            theirs = printed[one.paper][name]
            cells.append(word(ours) if ours == theirs else f"{word(ours)} (paper: {word(theirs)})")
        place = one.where.removeprefix("adjointdeis.")
        works = f"`{place}`" if one.found is not None else "not here"
        test = f"[{one.test}](../../tests/{one.test})"
        row = f"[{one.row}](../guidance/README.md)"
        entry = one.method()
        gradient = "-" if entry is None else type(entry.method()).__name__
        rows.append([one.paper, *cells, ", ".join(one.moves()) or "-", gradient, works, test, row])
    columns = [*COLUMNS.values(), "moves", "gradient", "works here as", "proved by", "bench row"]
    return table(["method", *columns], rows)


def method_table() -> str:
    """Every class of the catalogue with its declared capabilities."""
    names = ("ode", "sde", "x_T", "z", "z_t", "theta", "exact", "memory")
    rows = []
    for kind in dict.fromkeys(type(one.method()) for one in CATALOGUE):
        cells = [getattr(kind, name) for name in names]
        rows.append([kind.__name__, *(word(c) if isinstance(c, bool) else c for c in cells)])
    return table(["gradient method", *names], rows)


def written(readme: str) -> str:
    """A README with its tables made anew, between their markers."""
    for name, text in (("guidance", guidance_table()), ("methods", method_table())):
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        readme = re.sub(pattern, lambda m, text=text: f"{m[1]}{text}\n{m[2]}", readme, flags=re.S)
    return readme


if __name__ == "__main__":
    print(guidance_table(), method_table(), sep="\n\n")
    if "--write" in sys.argv:
        page = Path(__file__).with_name("README.md")
        page.write_text(written(page.read_text()))
