"""Which of our numbers may stand beside the paper's, and why the others may not.

The paper morphs 489 SYN-MAD pairs of FRLL photographs and names neither the probe image nor the
impostors behind its thresholds, so that even a run on its data and networks compares only under
assumptions; a run on the embedded synthetic benchmark does not compare at all.

Paper: Sections 5 and H; Tables 1, 4, 5, 6.
"""

from collections.abc import Mapping
from typing import Any

from adjointdeis.evaluation.paper import N_MORPHS, SYSTEMS
from adjointdeis.reporting.run import Run

# What the paper's guided rows were made with. Its text says eta = 0.01; the numbers of Table 1's
# ODE row are those of Table 6 at eta = 0.1.
GUIDED = {
    "sampling_steps": 20,
    "adjoint_steps": 20,
    "optimisation_steps": 50,
    "learning_rate": 0.1,
    "states": "recorded",
}
ROWS: dict[str, dict[str, Any]] = {
    "DiM-A": {"sampling_steps": 100, "optimisation_steps": 0},
    "Fast-DiM": {"sampling_steps": 50, "optimisation_steps": 0},
    "DiM + AdjointDEIS-1 (ODE)": GUIDED,
    "DiM + AdjointDEIS-1 (SDE)": GUIDED,
}
_WORDS = {
    "sampling_steps": "sampling steps",
    "adjoint_steps": "adjoint steps",
    "optimisation_steps": "optimisation steps",
    "learning_rate": "learning rate",
    "states": "states",
}
ASSUMED = (
    "the paper names neither its probe images nor the impostors behind its thresholds; these "
    "policies are ours"
)


def reasons_not_comparable(run: Run, attack: str, systems: tuple[str, ...] = SYSTEMS) -> list[str]:
    """Why this attack's numbers are not the paper's experiment; empty when they are."""
    reasons = data_reasons(run, systems)
    entry = run.result["attacks"][attack]
    wanted = ROWS.get(entry["paper_row"] or "")
    if wanted:
        reasons += setting_reasons(entry["settings"], wanted)
    return reasons


def data_reasons(run: Run, systems: tuple[str, ...] = SYSTEMS) -> list[str]:
    """Why the run's faces and networks are not the paper's."""
    if run.profile != "paper":
        return [
            "other faces and other networks: the embedded synthetic benchmark and its small models "
            "stand in for FRLL photographs, DiffAE at 256 x 256 and IResNet-100 recognisers"
        ]
    reasons = []
    counts = {row["n"] for row in run.result["rows"]}
    if counts != {N_MORPHS}:
        reasons.append(f"{' or '.join(map(str, sorted(counts)))} morphs instead of {N_MORPHS}")
    absent = [name for name in systems if name not in run.result["systems"]]
    if absent:
        reasons.append(f"no {', '.join(absent)}")
    return reasons


def setting_reasons(settings: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Settings that differ from those of the paper's row; unstated ones are passed over."""
    reasons = []
    for key, value in wanted.items():
        found = settings.get(key)
        if found is None or found == value or (value == 0 and not found):
            continue
        reasons.append(f"{found} {_WORDS[key]} instead of {value}")
    return reasons
