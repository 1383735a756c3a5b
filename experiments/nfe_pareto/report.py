"""Tables and result.json of every curve, of early stopping, and of the attacks of Table 1."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adjointdeis.evaluation.markdown import table
from adjointdeis.evaluation.uncertainty import percentile_interval
from experiments.nfe_pareto.rates import POLICIES, Curve, Point, passes
from experiments.nfe_pareto.settings import BASELINE, CHOSEN, TUNING_PAIRS
from experiments.nfe_pareto.study import Study

# Every row on some of the pairs, and the affordable ones on all of them; the later file wins.
TABLE1 = [Path(__file__).parents[1] / "table1" / name for name in ("result.json", "all_pairs.json")]
SIMILARITIES = (0.7, 0.75, 0.8, 0.85)
SHOWN_STEPS = (2, 4, 6, 8, 10, 12, 20, 50)


def summary(study: Study, found: list[Curve]) -> dict[str, Any]:
    """Everything that the tables and the plots are made from, JSON-ready."""
    by_setting = {curve.setting: curve for curve in found}
    base = by_setting.get(BASELINE)
    chosen = by_setting.get(CHOSEN)
    return {
        "pairs": len(study.benchmark.pairs),
        "thresholds": study.thresholds,
        "labels": {judge.name: judge.label for judge in study.judges},
        "curves": [_curve(curve, base) for curve in found],
        "stopping": [] if chosen is None else _stopping(chosen, base),
        "untouched_pairs": {}
        if chosen is None or base is None
        else _untouched(study, [chosen, base]),
        "table1": table_1(),
    }


def table_1() -> list[dict[str, Any]]:
    """MMPMR of the attacks of experiments/table1, on as many pairs as there are, by
    "judge/policy"."""
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


def tables(result: dict[str, Any]) -> str:
    """Markdown: where each curve passes the baseline, its course, stopping, unseen pairs."""
    parts = [_overview(result, policy) for policy in POLICIES]
    parts += [_course(result), _stopping_table(result), _untouched_table(result)]
    return "\n\n".join(parts)


def compact(result: dict[str, Any]) -> str:
    """JSON with a line per curve, row or attack: half the size of an indented file."""
    parts = []
    for key, value in result.items():
        if isinstance(value, list):
            lines = ",\n  ".join(json.dumps(one, separators=(",", ":")) for one in value)
            parts.append(f"{json.dumps(key)}: [\n  {lines}\n ]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value)}")
    return "{\n " + ",\n ".join(parts) + "\n}\n"


def _curve(curve: Curve, base: Curve | None) -> dict[str, Any]:
    points = []
    base = None if base is None else base.on(curve.judged.pairs)
    for step in curve.steps:
        rates = {}
        for key in curve.judged.keys:
            point = curve.point(step, key)
            rates[key] = _as_dict(point)
            if base is not None:
                rates[key]["gain"] = _rounded(point.gain(base.point(base.steps[-1], key)))
        points.append(
            {
                "step": step,
                "nfe": curve.setting.nfe(step),
                "loss": round(curve.loss(step), 4),
                "rates": rates,
            }
        )
    return {
        "name": curve.name,
        "setting": vars(curve.setting),
        "seeds": len(curve.runs),
        "pairs": len(curve.judged.pairs),
        "passes": {}
        if base is None
        else {policy: passes(curve, base, policy) for policy in POLICIES},
        "points": points,
    }


def _stopping(chosen: Curve, base: Curve | None) -> list[dict[str, Any]]:
    rows = []
    for similarity in SIMILARITIES:
        nfe, points = chosen.stopped(similarity)
        rates = {key: _as_dict(point) for key, point in points.items()}
        if base is not None:
            for key, point in points.items():
                rates[key]["gain"] = _rounded(point.gain(base.point(base.steps[-1], key)))
        rows.append({"similarity": similarity, "nfe": round(nfe, 1), "rates": rates})
    return rows


def _untouched(study: Study, both: list[Curve]) -> dict[str, Any]:
    """The last iterates on the pairs that no setting was chosen on."""
    tuned = {pair.morph_id for pair in study.pairs(TUNING_PAIRS)}
    untouched = [pair for pair in study.benchmark.pairs if pair.morph_id not in tuned]
    chosen, base = (curve.on(untouched) for curve in both)
    judged = chosen.judged
    rates = {}
    for key in judged.keys:
        one, other = chosen.point(chosen.steps[-1], key), base.point(base.steps[-1], key)
        rates[key] = {
            "chosen": _as_dict(one),
            "baseline": _as_dict(other),
            "gain": _rounded(one.gain(other)),
        }
    return {"n": len(judged.pairs), "rates": rates}


def _as_dict(point: Point) -> dict[str, Any]:
    lo, hi = percentile_interval(point.replicates)
    return {
        "k": list(point.k),
        "value": round(point.value, 4),
        "lo": round(lo, 4),
        "hi": round(hi, 4),
    }


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 4) for value in values]


def _judges(result: dict[str, Any]) -> list[str]:
    return list(result["thresholds"])


def _labels(result: dict[str, Any]) -> list[str]:
    return [result["labels"][judge] for judge in _judges(result)]


def _overview(result: dict[str, Any], policy: str) -> str:
    judges, rows = _judges(result), []
    for attack in result["table1"]:
        found = [attack["rates"].get(f"{judge}/{policy}") for judge in judges]
        if all(found):
            nfe = "-" if attack["nfe"] is None else f"{attack['nfe']:g}"
            rows.append(
                [f"{attack['row']} ({attack['n']} pairs)", nfe, "-", "-", *map(shown, found)]
            )
    for curve in result["curves"]:
        last = curve["points"][-1]
        rows.append(
            [
                named(curve, result["pairs"]),
                str(last["nfe"]),
                f"{last['loss']:.3f}",
                str(curve["passes"].get(policy) or "-"),
                *(shown(last["rates"][f"{judge}/{policy}"]) for judge in judges),
            ]
        )
    header = ["attack", "NFE", "loss", "reaches AdjointDEIS-1 from NFE", *_labels(result)]
    return f"Probe: {policy}; the last iterate\n\n" + table(header, rows)


def _course(result: dict[str, Any]) -> str:
    judges, rows = _judges(result), []
    for curve in result["curves"]:
        by_step = {point["step"]: point for point in curve["points"]}
        cells = []
        for step in SHOWN_STEPS:
            point = by_step.get(step)
            if point is None:
                cells.append("")
                continue
            counts = "/".join(
                f"{100 * point['rates'][f'{judge}/other']['value']:.0f}" for judge in judges
            )
            cells.append(f"{counts} ({point['loss']:.3f})")
        rows.append([named(curve, result["pairs"]), *cells])
    header = ["attack", *(f"step {step}" for step in SHOWN_STEPS)]
    title = f"Probe: other; MMPMR on {' / '.join(_labels(result))} (identity loss)"
    return title + "\n\n" + table(header, rows)


def _stopping_table(result: dict[str, Any]) -> str:
    judges, rows = _judges(result), []
    for row in result["stopping"]:
        cells = [row["rates"][f"{judge}/other"] for judge in judges]
        rows.append([f"{row['similarity']:g}", f"{row['nfe']:.0f}", *map(shown, cells)])
    return "Early stopping; probe: other\n\n" + table(
        ["similarity", "mean NFE", *_labels(result)], rows
    )


def _untouched_table(result: dict[str, Any]) -> str:
    found = result["untouched_pairs"]
    if not found:
        return ""
    rows = []
    for key, rates in found["rates"].items():
        judge, _, policy = key.partition("/")
        name = f"{result['labels'][judge]}, {policy}"
        rows.append([name, shown(rates["chosen"]), shown(rates["baseline"]), gained(rates["gain"])])
    header = ["judge, probe", "chosen setting", "AdjointDEIS-1 at 2250", "difference"]
    return f"The {found['n']} pairs that nothing was chosen on\n\n" + table(header, rows)


def named(curve: dict[str, Any], pairs: int) -> str:
    """A curve's name with what differs from one seed on all pairs."""
    seeds = f", {curve['seeds']} seeds" if curve["seeds"] > 1 else ""
    few = f", {curve['pairs']} pairs" if curve["pairs"] < pairs else ""
    return curve["name"] + seeds + few


def shown(found: dict[str, Any]) -> str:
    """A rate in percent with the counts of its seeds and its interval."""
    counts = ", ".join(str(k) for k in found["k"])
    value, lo, hi = (100 * found[key] for key in ("value", "lo", "hi"))
    return f"{value:.0f} ({counts}) [{lo:.0f}, {hi:.0f}]"


def gained(values: Sequence[float]) -> str:
    """A difference in percentage points with its paired interval."""
    gain, lo, hi = (100 * value for value in values)
    return f"{gain:+.0f} [{lo:+.0f}, {hi:+.0f}]"
