"""From trajectories to rates with intervals: tables and result.json."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from study import Setting, Study, accepted

from adjointdeis.evaluation.markdown import table
from adjointdeis.evaluation.rates import rate

PAPER_NFE = 2250
BASELINE = Path(__file__).parents[1] / "table1_first" / "result.json"
POLICIES = ("other", "source")


def summary(curves: list[tuple[Study, Setting, list[dict[str, Any]]]]) -> dict[str, Any]:
    """Every curve's rates by step, and AdjointDEIS-1's at the paper's evaluations."""
    return {
        "baseline": baseline(),
        "curves": [
            {
                "name": setting.name,
                "setting": vars(setting),
                "pairs": len(study.benchmark.pairs),
                "points": [
                    {
                        "step": row["step"],
                        "nfe": setting.nfe(row["step"]),
                        "loss": round(float(np.mean(row["loss"])), 4),
                        "rates": {
                            f"{judge.name}/{policy}": as_dict(
                                rate(
                                    int(accepted(study, row, judge.name, policy).sum()),
                                    len(study.benchmark.pairs),
                                )
                            )
                            for judge in study.judges
                            for policy in POLICIES
                        },
                    }
                    for row in rows
                ],
            }
            for study, setting, rows in curves
        ],
    }


def as_dict(found: Any) -> dict[str, float]:
    """A rate with its count and its Wilson interval."""
    low, high = found.interval
    return {"k": found.k, "n": found.n, "value": found.k / found.n, "low": low, "high": high}


def baseline() -> dict[str, dict[str, float]]:
    """AdjointDEIS-1 (ODE) at 2250 evaluations, by "judge/policy", as table1_first measured it."""
    rows = json.loads(BASELINE.read_text())["rows"]
    return {
        f"{row['system']}/{row['probe_policy']}": {
            "k": row["k"],
            "n": row["n"],
            "value": row["value"],
            "low": row["wilson_lo"],
            "high": row["wilson_hi"],
        }
        for row in rows
        if row["attack"] == "adjoint_deis_ode" and row["system"] != "dlib"
    }


def reached(curve: dict[str, Any], base: dict[str, dict[str, float]], policy: str) -> int | None:
    """Least evaluations from which on every judge's rate is at least the baseline's."""
    keys = [key for key in base if key.endswith(policy)]
    least = None
    for point in reversed(curve["points"]):
        if all(point["rates"][key]["value"] >= base[key]["value"] for key in keys):
            least = point["nfe"]
        else:
            break
    return least


def tables(result: dict[str, Any]) -> str:
    """Markdown: the baseline, then each curve's last point and where it passes the baseline."""
    base = result["baseline"]
    judges = list(dict.fromkeys(key.split("/")[0] for key in base))
    parts = []
    for policy in POLICIES:
        rows = [
            ["AdjointDEIS-1, 50 steps (table1_first)", "100", str(PAPER_NFE), "0.392", "-"]
            + [shown(base[f"{judge}/{policy}"]) for judge in judges]
        ]
        for curve in result["curves"]:
            for point in curve["points"][:: max(1, (len(curve["points"]) - 1) // 2)]:
                passes = reached(curve, base, policy)
                rows.append(
                    [
                        curve["name"],
                        str(curve["pairs"]),
                        str(point["nfe"]),
                        f"{point['loss']:.3f}",
                        "-" if passes is None else str(passes),
                    ]
                    + [shown(point["rates"][f"{judge}/{policy}"]) for judge in judges]
                )
        header = ["attack", "pairs", "NFE", "loss", "passes AdjointDEIS-1 from NFE", *judges]
        parts.append(f"Probe: {policy}\n\n" + table(header, rows))
    return "\n\n".join(parts)


def shown(found: dict[str, float]) -> str:
    """A rate in percent with its interval."""
    low, high = (100 * found[key] for key in ("low", "high"))
    return f"{100 * found['value']:.0f} ({found['k']}/{found['n']}) [{low:.0f}, {high:.0f}]"
