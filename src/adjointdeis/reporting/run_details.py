"""The tables of one run behind its rates: thresholds, gradients, costs, outcomes."""

from adjointdeis.evaluation import tables
from adjointdeis.reporting.document import DASH, Cell, Table, cells
from adjointdeis.reporting.run import EvaluationSetting, Run
from adjointdeis.reporting.text import count, duration, small


def threshold_table(run: Run) -> Table:
    """Every threshold with what it rests on."""
    known = run.result["systems"]
    return tables.threshold_table(
        run.thresholds, lambda name: run.system_label(name) if name in known else name
    )


def gradient_table(run: Run) -> Table | None:
    """How wrong each method's gradient was against the exact one; None where none was measured."""
    rows = []
    for entry in run.result["attacks"].values():
        error = entry.get("gradient_error")
        if error:
            method = entry["settings"].get("gradient")
            rows.append(
                cells(
                    (
                        Cell(entry["label"], (str(method),) if method else ()),
                        small(error["relative"]),
                        f"{error['cosine']:.3f}",
                        small(error["norm_ratio"]),
                        str(error["pairs"]),
                    )
                )
            )
    if not rows:
        return None
    return Table(
        key="gradient",
        title="Gradient of each method against the exact gradient of the sampler that ran",
        header=("Attack", "Relative error", "Cosine", "Length ratio", "Pairs"),
        rows=tuple(rows),
        notes=(
            "Relative error ‖g − g*‖/‖g*‖, cosine of the angle between g and g*, and ‖g‖/‖g*‖, "
            "with g over (x_T, z) at the first optimisation step; 0, 1 and 1 are exact.",
        ),
    )


def cost_table(run: Run) -> Table:
    """What each attack did and cost."""
    rows = []
    for entry in run.result["attacks"].values():
        s, nfe = entry["settings"], entry["nfe"] or {}
        method, arguments = _call(s.get("gradient"))
        solver, options = _call(s.get("solver"))
        guided = s.get("optimisation_steps")
        steps = (
            f"{guided} × {s.get('optimizer') or 'SGD'}, η = {s.get('learning_rate')}"
            if guided
            else "none"
        )
        of_solver = (f"{s.get('sampling_steps') or DASH} steps", *options)
        of_method = (
            *((f"{s['adjoint_steps']} steps",) if s.get("adjoint_steps") else ()),
            *arguments,
        )
        rows.append(
            cells(
                (
                    entry["label"],
                    Cell(solver, of_solver),
                    Cell(method, of_method),
                    Cell(steps, (f"keeps the {s['keep']}",) if guided and s.get("keep") else ()),
                    count(nfe.get("encode")),
                    count(nfe.get("forward")),
                    count(nfe.get("vjps")),
                    duration(entry.get("seconds_per_pair")),
                )
            )
        )
    return Table(
        key="cost",
        title="What each attack ran, per pair",
        header=(
            "Attack",
            "Sampler",
            "Gradient",
            "Optimisation",
            "Encoding evaluations",
            "Sampling evaluations",
            "Vector-Jacobian products",
            "Time",
        ),
        rows=tuple(rows),
    )


def outcome_table(run: Run, attack: str, at: EvaluationSetting) -> Table | None:
    """Every pair of one attack: its images and, per recogniser, the weaker score and verdict."""
    by_system = {s: run.verdicts(attack, s, at) for s in run.systems}
    rows = []
    for pair in run.result["pairs"]:
        path = pair["morphs"].get(attack)
        href = path if path and run.path(path).is_file() else ""
        found = [by_system[s].get(pair["pair_id"]) for s in run.systems]
        if not any(found):
            continue
        words = {"yes": "matches both", "no": DASH, "failed": "failed", None: ""}
        rows.append((Cell(pair["pair_id"], href=href), *(Cell(words[v]) for v in found)))
    if not rows:
        return None
    return Table(
        key=f"outcomes-{attack}",
        title="",
        header=("Pair", *map(run.system_label, run.systems)),
        rows=tuple(rows),
        labels=at.labels,
        fold=False,
    )


def _call(text: object) -> tuple[str, tuple[str, ...]]:
    """`Name(a=1, b=None)` as its name and its arguments that are set."""
    if not text:
        return "none", ()
    name, _, rest = str(text).partition("(")
    arguments = [a for a in rest.removesuffix(")").split(", ") if a]
    return name, tuple(a for a in arguments if not a.endswith(("=None", "=False")))
