"""The numbers that the AdjointDEIS paper prints, with the counts behind them.

Tables 1, 4, 5 and 6 hold MMPMR in percent at FMR 0.1% for AdaFace, ArcFace and ElasticFace. Every
cell is k/489 to the printed digit, and the CSV files give that k: one morph is 0.2045 percentage
points. The paper names neither the origin of the threshold nor the probe images and gives no
interval. Tables 2 and 3 are in words. Rows of Table 1 whose `source` is not the paper come from
the same authors' pages and complete the comparison.

Paper: Tables 1 to 6.

References:
    | AdjointDEIS: Efficient Gradients for Diffusion Models (Blasingame and Liu, 2024)
    | https://arxiv.org/abs/2405.15020
"""

import csv
import io
from importlib.resources import files
from typing import Any

from adjointdeis.evaluation.errors import EvaluationError
from adjointdeis.evaluation.rates import rate

N_MORPHS = 489
FMR = 0.001
SYSTEMS = ("adaface", "arcface", "elasticface")
NUMERIC_TABLES = ("table1", "table4", "table5", "table6")
TABLES = ("table1", "table2", "table3", "table4", "table5", "table6")
_LABEL_TYPES = {"nfe": int, "steps_M": int, "eta": float}


def paper_table(name: str) -> list[dict[str, Any]]:
    """One table as rows; in numeric tables `<system>` is a `Rate`, `<system>_percent` as printed.

    Raises:
        EvaluationError: for an unknown name.
    """
    if name not in TABLES:
        raise EvaluationError(f"paper table {name!r}: expected one of {', '.join(TABLES)}")
    text = files(__name__).joinpath(f"{name}.csv").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = []
    for cells in csv.DictReader(io.StringIO(text)):
        row: dict[str, Any] = {}
        for key, value in cells.items():
            if key in _LABEL_TYPES:
                row[key] = _LABEL_TYPES[key](value) if value else None
            elif value in ("true", "false"):
                row[key] = value == "true"
            elif name not in NUMERIC_TABLES or key in ("attack", "source"):
                row[key] = value
        if name in NUMERIC_TABLES:
            for system in SYSTEMS:
                row[f"{system}_percent"] = float(cells[system])
                row[system] = rate(int(cells[f"{system}_k"]), int(cells["n"]))
        rows.append(row)
    return rows
