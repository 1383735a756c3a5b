"""Every iterate of a guided attack, scored: what MMPMR a number of evaluations buys.

One run of an attack gives a whole curve, since the sampling run of every gradient step is a morph
in itself. Results are kept per setting and batch of pairs, so that a stopped study continues.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.faces.datasets.pairs import MorphPair
from adjointdeis.faces.tensors import to_tensor, to_uint8
from adjointdeis.gradients import AdjointDEIS, DiscreteAdjoint
from adjointdeis.guidance.latent_optimisation import LatentOptimisation
from adjointdeis.guidance.problem import LatentProblem
from adjointdeis.harness import assets
from adjointdeis.harness.benchmark import SOURCE, load_benchmark, read_aligned
from adjointdeis.harness.encodings import Encodings
from adjointdeis.harness.provenance import digest
from adjointdeis.harness.records import write_record
from adjointdeis.harness.scoring import PROBES
from adjointdeis.morphing.identity_loss import IdentityLoss
from adjointdeis.morphing.latents import morph_latents, sde_morph_latents
from adjointdeis.solvers import DDIM, SDEDPMSolver

OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": torch.optim.SGD,
    "momentum": partial(torch.optim.SGD, momentum=0.9),
    "Adam": partial(torch.optim.Adam, betas=(0.5, 0.9)),
    "RAdam": partial(torch.optim.RAdam, betas=(0.5, 0.9)),
    "L-BFGS": partial(torch.optim.LBFGS, max_iter=1, history_size=10),
}


@dataclass(frozen=True)
class Setting:
    """One curve of the study.

    Args:
        gradient: "exact" or "AdjointDEIS-1".
        calculus: "ode" or "sde".
        optimiser: Key of ``OPTIMISERS``.
        lr, z_lr: Learning rates of x_T and of z; None takes that of x_T.
        n: Sampling steps N (and adjoint steps M).
        encode: Encoding steps N_E.
        steps: Gradient steps.
        seed: Of the SDE's noises; an ODE attack has none.
    """

    gradient: str
    optimiser: str
    lr: float
    z_lr: float | None = None
    n: int = 10
    encode: int = 50
    steps: int = 20
    calculus: str = "ode"
    seed: int = 0

    @property
    def name(self) -> str:
        """One line for tables and legends; the seed is not part of it."""
        rates = f"{self.lr:g}" + (f"/{self.z_lr:g}" if self.z_lr is not None else "")
        # An SDE is encoded along its own sampling grid.
        encode = "" if self.calculus == "sde" else f" N_E={self.encode}"
        return f"{self.gradient} {self.calculus} {self.optimiser} {rates} N={self.n}{encode}"

    def nfe(self, step: int) -> int:
        """Evaluations until the morph that gradient step ``step`` (0, 1, ...) sees.

        As the paper counts: N_E + n (N + M), a vector-Jacobian product through a kept graph
        counted like one with its evaluation, and the sampling run that shows the last iterate.
        """
        encode = self.n if self.calculus == "sde" else self.encode
        return encode + step * 2 * self.n + self.n


class Study:
    """The embedded benchmark with its networks."""

    def __init__(self, cache: Path) -> None:
        profile = assets.profile("mini")
        self.benchmark = load_benchmark("mini", "mini", None)
        self.autoencoder = assets.autoencoder("diffae.safetensors", profile)
        self.identity = assets.recogniser("guide.safetensors", profile)
        self.judges = [
            assets.recogniser(f"{name}.safetensors", profile)
            for name in ("arcface", "elasticface", "adaface")
        ]
        records = assets.thresholds("thresholds.json", profile)
        self.thresholds = {
            judge.name: next(
                r.value
                for r in records
                if r.model == judge.name and r.target_fmr == 0.001 and r.impostor_policy == "all"
            )
            for judge in self.judges
        }
        self.loss, self.cache = IdentityLoss(self.identity.features), cache
        self.device = torch.device("cpu")
        self.network = self.autoencoder.network
        self._probes = self._embed_probes()

    def pairs(self, limit: int | None) -> tuple[MorphPair, ...]:
        """All pairs, or so many, spread evenly over the list."""
        return load_benchmark("mini", "mini", limit).pairs

    def _embed_probes(self) -> dict[str, dict[str, dict[str, np.ndarray]]]:
        subjects = self.benchmark.subjects
        size = self.network.config.image_size
        found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
        for judge in self.judges:
            found[judge.name] = {}
            for policy, capture in PROBES.items():
                images = read_aligned([self.benchmark.image(s, capture) for s in subjects], size)
                embedded, _ = judge.embed(images)
                found[judge.name][policy] = dict(zip(subjects, embedded, strict=True))
        return found

    def scores(self, pairs: Sequence[MorphPair], x_0: Tensor) -> dict[str, list[list[float]]]:
        """Similarities of morphs to both subjects, by "judge/policy"."""
        images, found = to_uint8(x_0), {}
        for judge in self.judges:
            embedded, _ = judge.embed(images)
            for policy in PROBES:
                probes = self._probes[judge.name][policy]
                found[f"{judge.name}/{policy}"] = [
                    [
                        round(float(judge.compare(e, probes[s])), 5)
                        for s in (pair.subject_a, pair.subject_b)
                    ]
                    for e, pair in zip(embedded, pairs, strict=True)
                ]
        return found

    def trajectory(self, setting: Setting, pairs: Sequence[MorphPair]) -> list[dict[str, Any]]:
        """What each gradient step saw, and the morph after the last one."""
        size = self.network.config.image_size
        sides = [
            read_aligned([self.benchmark.image(s, SOURCE) for s in side], size)
            for side in ([p.subject_a for p in pairs], [p.subject_b for p in pairs])
        ]
        grid = TimeGrid.greedy_dim(self.autoencoder.schedule, setting.n)
        images = [to_tensor(side) for side in sides]
        if setting.calculus == "sde":
            seeds = [setting.seed + zlib.crc32(pair.morph_id.encode()) for pair in pairs]
            with torch.no_grad():
                latents = sde_morph_latents(self.autoencoder, *images, grid, seeds)
        else:
            encode = Encodings(self.autoencoder, self.cache)
            latents = morph_latents(*(encode(side, self.device, setting.encode) for side in sides))
        with torch.no_grad():
            v_a, v_b = (self.identity.features(side) for side in images)
        exact = DiscreteAdjoint(keep_activations=setting.n)
        gradient = exact if setting.gradient == "exact" else AdjointDEIS()
        problem = LatentProblem(
            self.autoencoder.denoiser,
            latents.x_T,
            latents.z,
            loss=lambda x_0, rows: self.loss(x_0, v_a, v_b).loss,
            solver=SDEDPMSolver() if setting.calculus == "sde" else DDIM(),
            grid=grid,
            noise=latents.noise,
        )
        optimisation = LatentOptimisation(
            setting.steps,
            partial(OPTIMISERS[setting.optimiser], lr=setting.lr),
            gradient,
            setting.z_lr,
        ).start(problem)
        rows = []
        for step in range(setting.steps + 1):
            if step < setting.steps:
                seen = optimisation.step()
                x_0, loss = seen.x_0, seen.loss
            else:
                found = optimisation.outcome()
                x_0, loss = found.x_0, found.loss
            with torch.no_grad():
                distances = self.loss(x_0, v_a, v_b)
            rows.append(
                {
                    "step": step,
                    "loss": [round(v, 5) for v in loss.tolist()],
                    "distance": [
                        [round(a, 5), round(b, 5)]
                        for a, b in zip(distances.a.tolist(), distances.b.tolist(), strict=True)
                    ],
                    "scores": self.scores(pairs, x_0),
                }
            )
        return rows


def batches(pairs: Sequence[MorphPair], size: int) -> Iterator[Sequence[MorphPair]]:
    """Consecutive groups of pairs."""
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def run(
    study: Study,
    setting: Setting,
    pairs: Sequence[MorphPair],
    directory: Path,
    batch_size: int,
    only_finished: bool = False,
) -> list[dict[str, Any]] | None:
    """Trajectories of every pair under a setting, by step; what is on disk is not repeated.

    Args:
        study: Networks and faces.
        setting: What to run.
        pairs: Whom to morph.
        directory: Where every batch's trajectories are kept.
        batch_size: Pairs at a time.
        only_finished: Return None instead of computing what is missing.
    """
    merged: list[dict[str, Any]] = []
    for group in batches(pairs, batch_size):
        key = digest({"setting": vars(setting), "pairs": [p.morph_id for p in group]})
        path = directory / f"{key}.json"
        if path.is_file():
            rows = json.loads(path.read_text())["rows"]
        elif only_finished:
            return None
        else:
            rows = study.trajectory(setting, group)
            write_record(path, {"setting": vars(setting), "rows": rows})
        for step, row in enumerate(rows):
            if step == len(merged):
                merged.append({"step": step, "loss": [], "distance": [], "scores": {}})
            merged[step]["loss"] += row["loss"]
            merged[step]["distance"] += row["distance"]
            for name, values in row["scores"].items():
                merged[step]["scores"].setdefault(name, []).extend(values)
    return merged
