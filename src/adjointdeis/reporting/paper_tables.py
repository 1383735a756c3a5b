"""The paper's Tables 1, 4, 5 and 6 with ours beside the paper's, cell by cell; which may compare.

The paper morphs 489 SYN-MAD pairs of FRLL photographs and names neither the probe image nor the
impostors behind its thresholds, so that even a run on its data and networks compares only under
assumptions; a run on the embedded synthetic benchmark does not compare at all.

Runs are matched to rows by what they ran, never by their folder alone: Table 1 by the row that an
attack names, Tables 4 to 6 by adjoint steps, learning rate, states and calculus. Guided attacks
of a table's experiment that the paper has no row for are shown too; they are ours alone.

Paper: Sections 5 and H; Tables 1, 4, 5, 6. Table 5 prints eta = 0.001 for what Table 6 calls 0.01,
so a run of either rate is set beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from adjointdeis.evaluation.paper import N_MORPHS, SYSTEMS, paper_table
from adjointdeis.reporting.collect import AttackRuns, Collection, entries
from adjointdeis.reporting.run import EvaluationSetting, Run

# What every row of the paper's Table 1 was made with, as `Attack.settings()` says it; a solver is
# compared by its name. Rows that the paper takes from others have their settings from those papers'
# public configurations. Of the guided rows the text says eta = 0.01; the numbers of Table 1's ODE
# row are those of Table 6 at eta = 0.1.
_DIM: dict[str, Any] = {
    "solver": "DDIM",
    "grid": "greedy_dim",
    "sampling_steps": 100,
    "encoding_steps": 250,
    "encoding_grid": "ddim_stride",
    "pre_morph": "none",
    "noise_blend": "slerp",
    "weight": 0.5,
}
_PLAIN: dict[str, Any] = {**_DIM, "optimisation_steps": 0}
GUIDED: dict[str, Any] = {
    **_DIM,
    "sampling_steps": 20,
    "gradient": "AdjointDEIS",
    "adjoint_steps": 20,
    "optimisation_steps": 50,
    "learning_rate": 0.1,
    "optimizer": "SGD",
    "states": "recorded",
    "keep": "last",
}
_FAST: dict[str, Any] = {**_PLAIN, "solver": "DPMSolverPP", "sampling_steps": 50}
_SEARCH = {key: value for key, value in _DIM.items() if key not in ("weight", "noise_blend")}
_LANDMARK: dict[str, Any] = {"method": "LandmarkAttack", "weight": 0.5, "points": "auto"}
_MIPGAN: dict[str, Any] = {
    "method": "MIPGANAttack",
    "optimisation_steps": 150,
    "learning_rate": 0.03,
    "optimizer": "Adam",
    "identity_weight": 10.0,
    "ms_ssim_weight": 1.0,
    "identity_difference_weight": 1.0,
}
ROWS: dict[str, dict[str, Any]] = {
    "Webmorph": {**_LANDMARK, "variant": "webmorph"},
    "OpenCV": {**_LANDMARK, "variant": "opencv"},
    "FaceMorpher": {**_LANDMARK, "variant": "facemorpher"},
    "MIPGAN-I": {**_MIPGAN, "version": "I"},
    "MIPGAN-II": {**_MIPGAN, "version": "II"},
    "DiM-A": _PLAIN,
    "DiM-C": {**_PLAIN, "pre_morph": "average"},
    "Fast-DiM": _FAST,
    "Fast-DiM-ode": {**_FAST, "encoding_steps": 100, "encoding_grid": "greedy_dim"},
    "Morph-PIPE": {**_SEARCH, "method": "MorphPIPE", "blends": 21},
    "Greedy-DiM-S": {**_SEARCH, "method": "GreedyDiMSearch", "blends": 21},
    "Greedy-DiM*": {**_DIM, "method": "GreedyDiM", "sampling_steps": 20, "inner_steps": 50,
                    "optimizer": "Adam"},
    "DiM + AdjointDEIS-1 (ODE)": GUIDED,
    "DiM + AdjointDEIS-1 (SDE)": {**GUIDED, "solver": "SDEDPMSolver"},
}  # fmt: skip
# Ours differ from these rows by more than a setting, whatever is set.
_OTHERWISE = {
    "MIPGAN-I": "made with a StyleGAN2, the paper's with a StyleGAN",
    "MIPGAN-II": "styles found by projection, for the paper's encoder is not public",
}
_SCHEMES_BY_NAME = ("solver", "gradient")
_READ = "Precomputed"
ASSUMED = (
    "the paper names neither its probe images nor the impostors behind its thresholds; these "
    "policies are ours"
)


def reasons_not_comparable(run: Run, attack: str) -> list[str]:
    """Why this attack's numbers are not the paper's experiment; empty when they are.

    Args:
        run: The run.
        attack: Name of the attack in it.
    """
    entry = run.result["attacks"][attack]
    return data_reasons(run) + departures(entry["paper_row"], entry["settings"])


def departures(row: str | None, settings: Mapping[str, Any]) -> list[str]:
    """Where an attack departs from the row of the paper that it stands for, in words.

    Args:
        row: The paper's row, or None for an attack that stands for none.
        settings: Of the attack, as `Attack.settings()` gives them.
    """
    # Morphs that somebody else made carry that maker's settings, which no run can check.
    if not row or settings.get("method") == _READ:
        return []
    if row not in ROWS:
        return [f"the paper's settings of {row} are not known here"]
    otherwise = [_OTHERWISE[row]] if row in _OTHERWISE else []
    return setting_reasons(settings, ROWS[row]) + otherwise


def data_reasons(run: Run) -> list[str]:
    """Why the run's faces and networks are not the paper's."""
    if run.profile != "paper":
        return [
            "other faces and other networks: the embedded synthetic benchmark and its small models "
            "stand in for FRLL photographs, DiffAE at 256 x 256 and IResNet-100 recognisers"
        ]
    reasons = [f"documents went through {run.degradation}"] if run.degradation else []
    counts = {row["n"] for row in run.result["rows"]}
    if counts != {N_MORPHS}:
        reasons.append(f"{' or '.join(map(str, sorted(counts)))} morphs instead of {N_MORPHS}")
    absent = [name for name in SYSTEMS if name not in run.result["systems"]]
    if absent:
        reasons.append(f"no {', '.join(absent)}")
    return reasons


def setting_reasons(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One sentence for each setting that is not the paper's, or that the run does not state.

    Args:
        settings: Of the run's attack.
        wanted: Of the paper's row.
    """
    reasons = []
    for key, value in wanted.items():
        found, words = settings.get(key), key.replace("_", " ")
        if key in _SCHEMES_BY_NAME and isinstance(found, str):
            found = found.partition("(")[0]
        if found is None and value != 0:
            reasons.append(f"{words} unstated instead of {value}")
        elif found != value and not (value == 0 and not found):
            reasons.append(f"{words} {found} instead of {value}")
    return reasons


SETTING = ("probe_policy", "impostor_policy", "variant", "fmr_target")
ENDS = ("bootstrap_lo", "bootstrap_hi", "wilson_lo", "wilson_hi")
STATED = ("solver", "gradient", "states", "sampling_steps", "adjoint_steps", "learning_rate",
          "optimisation_steps")  # fmt: skip
NUMBERS = ("table1", "table4", "table5", "table6")
TITLES = {
    "table1": "Table 1: attacks",
    "table4": "Table 4: number of adjoint steps",
    "table5": "Table 5: recorded states or a backward solve",
    "table6": "Table 6: learning rate, adjoint steps, ODE and SDE",
}


@dataclass(frozen=True, eq=False)
class Line:
    """One row of a rebuilt table.

    Attributes:
        label: what the row is.
        paper: the paper's row (`<system>` a Rate, `<system>_percent`), or None where ours alone.
        ours: the entry that ran it, or None where no run did.
        reasons: why ours and the paper's do not compare; empty where they do or one is absent.
    """

    label: str
    paper: Mapping[str, Any] | None
    ours: AttackRuns | None
    reasons: tuple[str, ...] = ()


def lines(name: str, collection: Collection) -> list[Line]:
    """The rows of a table: the paper's in its order, each with our entries, then ours alone."""
    own = [e for e in entries(collection.runs) if _experiment(e).split("_")[0] == name]
    own.sort(key=_order)
    found: list[Line] = []
    used: set[int] = set()
    for row in paper_table(name):
        matched = [e for e in own if _matches(name, row, e)]
        used.update(id(e) for e in matched)
        label = _paper_label(name, row)
        found += [Line(label, row, e, _reasons(name, row, e)) for e in matched]
        if not matched:
            found.append(Line(label, row, None))
    found += [Line(_own_label(name, e), None, e) for e in own if id(e) not in used]
    return found


def systems_of(found: Sequence[Line]) -> list[str]:
    """The paper's recognisers in its order, then those that only we have."""
    extra = [
        s for line in found if line.ours for s in line.ours.runs[0].systems if s not in SYSTEMS
    ]
    return list(dict.fromkeys((*SYSTEMS, *extra)))


def headline(found: Sequence[Line]) -> list[EvaluationSetting]:
    """One condition per probe policy that our entries have, the other image first."""
    conditions: list[EvaluationSetting] = []
    for line in found:
        if line.ours:
            conditions += line.ours.runs[0].headline
    # A stable sort keeps the first condition of each policy in front.
    unique = dict.fromkeys(conditions)
    by_probe: dict[str, EvaluationSetting] = {}
    for at in sorted(unique, key=lambda c: c.probe != "other"):
        by_probe.setdefault(at.probe, at)
    return list(by_probe.values())


def records(name: str, found: Sequence[Line]) -> list[dict[str, Any]]:
    """The table in long form, one record per row, recogniser and condition; JSON-ready."""
    rows = []
    for line in found:
        conditions = headline(found) or [None]
        for at in conditions:
            for system in systems_of(found):
                ours = line.ours.rate(system, at) if line.ours and at else None
                theirs = line.paper.get(system) if line.paper else None
                if ours is None and theirs is None:
                    continue
                rows.append(_record(name, line, system, at, ours, theirs))
    return rows


def _record(
    name: str,
    line: Line,
    system: str,
    at: EvaluationSetting | None,
    ours: Mapping[str, Any] | None,
    theirs: Any,
) -> dict[str, Any]:
    e = line.ours
    error = (e.first.get("gradient_error") or {}) if e else {}
    settings = e.settings if e else {}
    comparable = bool(e and line.paper and not line.reasons)
    return {
        "table": name,
        "row": line.label,
        "system": system,
        **dict(zip(SETTING, astuple(at) if ours and at else [None] * 4, strict=True)),
        **{key: ours[key] if ours else None for key in ("k", "n")},
        "guide": e.guided(system) if e and ours else None,
        **{key: ours[key] if ours else None for key in ("value", *ENDS)},
        "seeds": len(e.runs) if e else 0,
        "seed_sd": ours["seed_sd"] if ours else None,
        "paper_percent": line.paper[f"{system}_percent"] if line.paper and theirs else None,
        "paper_k": theirs.k if theirs else None,
        "paper_n": theirs.n if theirs else None,
        "paper_lo": theirs.lo if theirs else None,
        "paper_hi": theirs.hi if theirs else None,
        "paper_nfe": line.paper.get("nfe") if line.paper else None,
        "nfe_paper_accounting": e.number("nfe_paper") if e else None,
        "nfe_counted": e.counted() if e else None,
        "seconds_per_pair": e.number("seconds_per_pair") if e else None,
        "gradient_relative_error": error.get("relative"),
        "gradient_cosine": error.get("cosine"),
        **{key: settings.get(key) for key in STATED},
        "comparable": comparable if e and line.paper else None,
        "reasons": "; ".join(line.reasons or ((ASSUMED,) if comparable else ())),
        "config_hashes": " ".join(r.result["run"]["config_hash"] for r in e.runs) if e else "",
    }


def _experiment(entry: AttackRuns) -> str:
    return entry.runs[0].result["experiment"].split("/")[0]


def is_adjoint_deis_1(settings: Mapping[str, Any]) -> bool:
    """Whether the gradient is the paper's: AdjointDEIS of first order."""
    gradient = str(settings.get("gradient") or "")
    return gradient.startswith("AdjointDEIS") and "2M" not in gradient


def is_sde(settings: Mapping[str, Any]) -> bool:
    """Whether the sampler is of the SDE."""
    return "SDE" in str(settings.get("solver") or "").upper()


def _matches(name: str, row: Mapping[str, Any], entry: AttackRuns) -> bool:
    if name == "table1":
        return entry.first["paper_row"] == row["attack"]
    s = entry.settings
    if not is_adjoint_deis_1(s) or s.get("adjoint_steps") != row["steps_M"]:
        return False
    eta = s.get("learning_rate")
    if name == "table5":
        recorded = s.get("states") in (None, "recorded")
        return not is_sde(s) and recorded == row["recorded"] and eta in (0.001, 0.01)
    return eta == row["eta"] and is_sde(s) == bool(row.get("sde", False))


def _reasons(name: str, row: Mapping[str, Any], entry: AttackRuns) -> tuple[str, ...]:
    if name == "table1":
        return tuple(reasons_not_comparable(entry.runs[0], entry.attack))
    # The cell's own coordinates matched already; the rest of the paper's setting must hold too.
    wanted = {k: GUIDED[k] for k in ("sampling_steps", "optimisation_steps")}
    reasons = [*data_reasons(entry.runs[0]), *setting_reasons(entry.settings, wanted)]
    if name == "table5" and entry.settings.get("learning_rate") != row["eta"]:
        reasons.append("the paper labels this row 0.001 here and 0.01 in Table 6")
    return tuple(reasons)


def _paper_label(name: str, row: Mapping[str, Any]) -> str:
    if name == "table1":
        return str(row["attack"])
    if name == "table5":
        return f"{'recorded' if row['recorded'] else 'backward solve'}, M = {row['steps_M']}"
    calculus = ("SDE, " if row["sde"] else "ODE, ") if "sde" in row else ""
    return f"{calculus}η = {row['eta']:g}, M = {row['steps_M']}"


def _own_label(name: str, entry: AttackRuns) -> str:
    s = entry.settings
    if name == "table1" or not s.get("optimisation_steps"):
        return entry.label
    if is_adjoint_deis_1(s) and s.get("learning_rate") is not None:
        # The coordinates that the paper's own rows are named by.
        states = f"{s['states']}, " if name == "table5" and s.get("states") else ""
        calculus = f"{'SDE' if is_sde(s) else 'ODE'}, " if name == "table6" or is_sde(s) else ""
        return f"{states}{calculus}η = {s['learning_rate']:g}, M = {s['adjoint_steps']}"
    calculus = "SDE" if is_sde(s) else "ODE"
    parts = [] if calculus in entry.label else [calculus]
    parts += [f"η = {s['learning_rate']:g}"] if s.get("learning_rate") is not None else []
    parts += [f"M = {s['adjoint_steps']}"] if s.get("adjoint_steps") else []
    parts += [str(s["states"])] if s.get("states") not in (None, "recorded") else []
    return f"{entry.label}: {', '.join(parts)}"


def _order(entry: AttackRuns) -> tuple[Any, ...]:
    s = entry.settings
    return (
        is_sde(s),
        -(s.get("learning_rate") or 0),
        -(s.get("adjoint_steps") or 0),
        entry.label,
        str(entry.runs[0].directory),
    )
