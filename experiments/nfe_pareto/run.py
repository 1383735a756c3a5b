"""MMPMR against network evaluations, from runs of the main program; table, JSON, plots.

python run.py -m +experiment=nfe_pareto optimisation.steps=1,2,4,6,8,10,12
python -m experiments.nfe_pareto.run [outputs/nfe_pareto] [--out FOLDER]

README.md lists the sweeps of every curve. Writes result.json, result.md and both plots.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adjointdeis.evaluation.markdown import table
from adjointdeis.evaluation.tables import subject_interval
from adjointdeis.files import write_atomically
from adjointdeis.reporting.collect import AttackRuns, collect, entries
from adjointdeis.reporting.run import EvaluationSetting
from experiments.nfe_pareto.plot import draw_attacks, draw_optimisers

HERE = Path(__file__).parent
POLICIES = ("other", "source")
BASELINE = "AdjointDEIS-1 ode SGD 0.1 N=20 N_E=250"
"""The curve of the paper's settings, against which the others are held."""
# Every row on some of the pairs, and the affordable ones on all of them; the later file wins.
TABLE1 = [HERE.parent / "table1" / name for name in ("result.json", "all_pairs.json")]


def curve_name(settings: dict[str, Any]) -> str:
    """The name of a curve: all settings but the number of gradient steps."""
    gradient = settings["gradient"]
    if gradient.startswith("DiscreteAdjoint"):
        gradient = "exact"
    elif gradient.startswith("AdjointDEIS"):
        gradient = "AdjointDEIS-1"
    sde = str(settings["solver"]).startswith("SDE")
    optimizer = settings["optimizer"]
    if "momentum" in settings.get("optimizer_options", {}):
        optimizer = "momentum"
    n, encode = settings["sampling_steps"], "" if sde else f" N_E={settings['encoding_steps']}"
    rate = f"{settings['learning_rate']:g}"
    return f"{gradient} {'sde' if sde else 'ode'} {optimizer} {rate} N={n}{encode}"


def curves(found: Sequence[AttackRuns]) -> list[dict[str, Any]]:
    """One curve for each way to optimise, a point for each number of gradient steps."""
    made: dict[tuple[str, int], dict[str, Any]] = {}
    for entry in found:
        if entry.settings["gradient"] is None:
            continue  # without a gradient step an attack is no point of one curve alone
        pairs = len(entry.runs[0].result["pairs"])
        name = curve_name(dict(entry.settings))
        curve = made.setdefault(
            (name, pairs),
            {"name": name, "seeds": len(entry.seeds), "pairs": pairs, "points": []},
        )
        rates = {}
        for system in entry.runs[0].systems:
            for policy in POLICIES:
                rate = entry.rate(system, EvaluationSetting(policy, "all", "MMPMR", 0.001))
                if rate is not None:
                    low, high = subject_interval(rate)
                    rates[f"{system}/{policy}"] = {
                        "k": [round(value * rate["n"]) for value in rate["values"]],
                        "value": round(rate["value"], 4),
                        "lo": round(low, 4),
                        "hi": round(high, 4),
                    }
        losses = entry.first.get("curves", {}).get("loss") or [None]
        curve["points"].append(
            {
                "step": entry.settings["optimisation_steps"],
                "nfe": entry.counted(),
                "loss": losses[-1],
                "rates": rates,
            }
        )
    for curve in made.values():
        curve["points"].sort(key=lambda point: point["step"])
    return list(made.values())


def reaches(curve: dict[str, Any], base: dict[str, Any], policy: str) -> float | None:
    """Least evaluations from which on no recogniser's rate is below the last one of ``base``."""
    goal = {
        key: rate["value"]
        for key, rate in base["points"][-1]["rates"].items()
        if key.endswith(policy)
    }
    least = None
    for point in reversed(curve["points"]):
        if any(point["rates"][key]["value"] < value for key, value in goal.items()):
            break
        least = point["nfe"]
    return least


def table_1() -> list[dict[str, Any]]:
    """MMPMR of the attacks of experiments/table1, on as many pairs as there are."""
    attacks: dict[str, dict[str, Any]] = {}
    for row in (row for path in TABLE1 for row in json.loads(path.read_text())["rows"]):
        if row["variant"] != "MMPMR" or row["impostor_policy"] != "all" or row["n"] is None:
            continue
        attack = attacks.setdefault(
            row["row"], {"row": row["row"], "nfe": row["nfe_paper_accounting"], "rates": {}}
        )
        attack["n"] = row["n"]
        attack["rates"][f"{row['system']}/{row['probe_policy']}"] = {
            "k": [row["k"]],
            "value": row["value"],
            "lo": row["wilson_lo"],
            "hi": row["wilson_hi"],
        }
    return list(attacks.values())


def printed(result: dict[str, Any], policy: str) -> str:
    """The last point of every curve, and where it reaches the baseline, in Markdown."""
    base = next((c for c in result["curves"] if c["name"] == BASELINE), None)
    rows = []
    for curve in result["curves"]:
        last = curve["points"][-1]
        seeds = f", {curve['seeds']} seeds" if curve["seeds"] > 1 else ""
        # A curve on some of the pairs cannot be held against one on all of them.
        same = base is not None and base["pairs"] == curve["pairs"]
        first = reaches(curve, base, policy) if base is not None and same else None
        rows.append(
            [
                f"{curve['name']}{seeds}, {curve['pairs']} pairs",
                f"{last['nfe']:g}",
                "-" if last["loss"] is None else f"{last['loss']:.3f}",
                "-" if first is None else f"{first:g}",
                *(
                    shown(last["rates"][key]) if key in last["rates"] else "-"
                    for key in (f"{system}/{policy}" for system in result["labels"])
                ),
            ]
        )
    header = ["attack", "NFE", "loss", "reaches the paper's from NFE", *result["labels"].values()]
    return f"Probe: {policy}; the last point of every curve\n\n" + table(header, rows)


def shown(rate: dict[str, Any]) -> str:
    """A rate in percent with the counts of its seeds and its interval."""
    counts = ", ".join(str(k) for k in rate["k"])
    value, low, high = (100 * rate[key] for key in ("value", "lo", "hi"))
    return f"{value:.0f} ({counts}) [{low:.0f}, {high:.0f}]"


def compact(result: dict[str, Any]) -> str:
    """JSON with a line per curve or attack: half the size of an indented file."""
    parts = []
    for key, value in result.items():
        if isinstance(value, list):
            lines = ",\n  ".join(json.dumps(one, separators=(",", ":")) for one in value)
            parts.append(f"{json.dumps(key)}: [\n  {lines}\n ]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def main() -> None:
    """Reads the runs, prints the tables, writes result.json and the plots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("outputs", type=Path, nargs="?", default=Path("outputs/nfe_pareto"))
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    runs = collect(options.outputs).runs
    systems = runs[0].result["systems"]
    result = {
        "pairs": max(len(run.result["pairs"]) for run in runs),
        "labels": {name: system["label"] for name, system in systems.items()},
        "curves": curves(entries(runs)),
        "table1": table_1(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(printed(result, policy) for policy in POLICIES)
    write_atomically(options.out / "result.json", compact(result))
    write_atomically(options.out / "result.md", text + "\n")
    draw_attacks(result, options.out / "pareto.png")
    draw_optimisers(result, options.out / "optimisers.png")
    print(text)


if __name__ == "__main__":
    main()
