"""Hours of each row of Table 1 at the paper's size, from counted floating-point work.

    python -m experiments.table1.cost

Work of one evaluation comes from experiments/full_size (counted, not timed).  The rate of the GPU
comes from the paper: AdjointDEIS on 489 pairs took 6 to 8 hours on a V100, which is what its
evaluations make at the rate printed first.
"""

import json
from pathlib import Path

from hydra import compose, initialize_config_dir

from adjointdeis.harness.tasks.morph import chosen_attacks
from adjointdeis.morphing.attack import Attack
from adjointdeis.morphing.dim import DiM

ROOT = Path(__file__).parents[2]
PAIRS, FACES, PAPER_HOURS = 489, 102, 7.0
GFLOP = json.loads((ROOT / "experiments" / "full_size" / "result.json").read_text())["gflop"]


def per_pair(attack: DiM) -> float:
    """GFLOP of one pair without its encoding."""
    cost = attack.device_cost()
    work = cost.nfe_forward * GFLOP["denoiser"] + cost.vjps * GFLOP["denoiser_and_vjp"]
    work += cost.loss_gradients * GFLOP["recogniser_and_vjp"]
    return work + cost.loss_evaluations * GFLOP["recogniser"]


def encoding(attack: DiM) -> float:
    """GFLOP of encoding for all pairs: every face once, or every pair's own images."""
    own = attack.pre_morph != "none" or attack.stochastic
    images = 2 * PAIRS if own else FACES
    return images * (attack.expected_cost().encode * GFLOP["denoiser"] + GFLOP["codes"])


def rows() -> list[Attack]:
    """The attacks of Table 1 as they run on the paper's assets."""
    line = ["+experiment=table1", "assets=paper", "paths.root=."]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return chosen_attacks(compose("config", line))


def main() -> None:
    latent = [attack for attack in rows() if isinstance(attack, DiM)]
    guided = next(a for a in latent if a.name == "adjoint_deis_ode")
    whole = PAIRS * (per_pair(guided) + 2 * guided.expected_cost().encode * GFLOP["denoiser"])
    rate = whole / (PAPER_HOURS * 3600)
    print(f"{whole / 1e6:.0f} PFLOP in {PAPER_HOURS:g} hours: {rate / 1e3:.0f} TFLOP/s\n")
    print("| row | NFE | TFLOP a pair | encoding, PFLOP | hours, 489 pairs |")
    print("|---|---|---|---|---|")
    for attack in sorted(latent, key=per_pair):
        total = PAIRS * per_pair(attack) + encoding(attack)
        print(
            f"| {attack.label} | {attack.nfe_paper} | {per_pair(attack) / 1e3:.0f} | "
            f"{encoding(attack) / 1e6:.1f} | {total / rate / 3600:.1f} |"
        )


if __name__ == "__main__":
    main()
