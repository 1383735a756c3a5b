"""DiM: morphing by interpolating the latents of a diffusion autoencoder, without optimisation.

=============  ===========================  =========================  ===================
attack         pre-morph that is encoded    noises are interpolated    sampling
=============  ===========================  =========================  ===================
DiM-A          none                         spherically                DDIM, N = 100
DiM-B          none                         linearly                   DDIM, N = 100
DiM-C          mean of the pixels           spherically                DDIM, N = 100
DiM-D          landmark morph (OpenCV)      spherically                DDIM, N = 100
Fast-DiM       none                         spherically                DPM-Solver++ 2M, 50
Fast-DiM-ode   none; encoded by the         spherically                DPM-Solver++ 2M, 50
               scheduler's ODE in 100
=============  ===========================  =========================  ===================

The codes z are always those of the original photographs, interpolated linearly; a pre-morph
replaces the photographs only in the ODE that finds the noises, once under each code.

References:
    | Leveraging Diffusion for Strong and High Quality Face Morphing Attacks
    | https://arxiv.org/abs/2301.04218
    | Fast-DiM: Towards Fast Diffusion Morphs
    | https://arxiv.org/abs/2310.09484
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from adjointdeis.diffusion.cycle_sde import AdditiveNoise
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.schedule import DDPM
from adjointdeis.guidance.problem import LatentProblem
from adjointdeis.morphing.attack import (
    Attack,
    EncodedFace,
    MorphCost,
    Morphs,
    Progress,
    Sources,
    Work,
    Workbench,
)
from adjointdeis.morphing.autoencoder import EncodingGrid
from adjointdeis.morphing.blend import lerp, slerp
from adjointdeis.morphing.landmark import LandmarkMorph
from adjointdeis.morphing.landmark_attack import landmark_morphs
from adjointdeis.morphing.latents import MorphLatents, morph_latents, sde_morph_latents
from adjointdeis.rollout import Rollout
from adjointdeis.solvers import DDIM, SDEDPMSolverPP
from adjointdeis.solvers.base import Solver

GRIDS: dict[str, Callable[[DDPM, int], TimeGrid]] = {
    "greedy_dim": TimeGrid.greedy_dim,
    "ddim_stride": TimeGrid.ddim_stride,
}
BLENDS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {"slerp": slerp, "lerp": lerp}
PLAIN = DDIM()


@dataclass(frozen=True, kw_only=True)
class DiM(Attack):
    """The DiM family: encode both sources, interpolate, sample.

    Args:
        solver: Sampler; an SDE solver takes its noises from Cycle-SDE.
        grid: "greedy_dim", the rounding of the paper's scheduler (999 ... 50, then index 0), or
            "ddim_stride", the diffusion autoencoder's own (950 ... 0, then clean), to which belongs
            ``solver.clip_x0=true``.
        sampling_steps: N.
        encoding_steps: N_E, of the probability-flow ODE that encodes the sources.
        encoding_grid: Grid of that ODE, see :meth:`Autoencoder.encode`.
        pre_morph: What is encoded in the place of each photograph.
        noise_blend: How the two noises are interpolated.
        weight: Share of the second source in codes, noises and pre-morph.
    """

    solver: Solver = PLAIN
    grid: str = "greedy_dim"
    sampling_steps: int = 100
    encoding_steps: int = 250
    encoding_grid: EncodingGrid = "ddim_stride"
    pre_morph: Literal["none", "average", "landmark"] = "none"
    noise_blend: Literal["slerp", "lerp"] = "slerp"
    weight: float = 0.5

    resources: ClassVar[frozenset[str]] = frozenset({"autoencoder", "encoder"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, known in (
            ("grid", tuple(GRIDS)),
            ("encoding_grid", get_args(EncodingGrid)),
            ("pre_morph", ("none", "average", "landmark")),
            ("noise_blend", tuple(BLENDS)),
        ):
            if getattr(self, key) not in known:
                raise ValueError(
                    f"attack {self.name}: {key}={getattr(self, key)!r} must be one of "
                    f"{', '.join(known)}"
                )
        if not 0 <= self.weight <= 1:
            raise ValueError(
                f"attack {self.name}: weight={self.weight}, expected a share in [0, 1]"
            )
        if self.stochastic and not isinstance(self.solver, AdditiveNoise):
            raise ValueError(
                f"attack {self.name}: the noises of Cycle-SDE reproduce the sources under "
                "SDEDPMSolver and SDEDPMSolverPP only, not under "
                f"{type(self.solver).__name__}; choose solver=sde_dpm, solver=sde_dpmpp, or an "
                "ODE solver"
            )
        if isinstance(self.solver, SDEDPMSolverPP) and self.solver.eta != 1.0:
            raise ValueError(
                f"attack {self.name}: Cycle-SDE encodes along the forward process, whose reversal "
                f"is the SDE of eta=1, not of eta={self.solver.eta}; choose solver.eta=1, or an "
                "ODE solver"
            )
        if isinstance(self.solver, SDEDPMSolverPP) and self.grid == "ddim_stride":
            raise ValueError(
                f"attack {self.name}: grid=ddim_stride ends at sigma = 0, where SDEDPMSolverPP "
                "adds no noise and Cycle-SDE cannot reach the source; choose grid=greedy_dim, or "
                "solver=sde_dpm"
            )
        if self.stochastic and (self.pre_morph, self.noise_blend) != ("none", "slerp"):
            raise ValueError(
                f"attack {self.name}: an SDE solver encodes by Cycle-SDE, which has no pre-morph "
                "and interpolates spherically; choose an ODE solver, or pre_morph=none and "
                "noise_blend=slerp"
            )
        if self.pre_morph == "landmark":
            object.__setattr__(self, "resources", self.resources | {"landmarks"})

    def _derived_label(self) -> str:
        return type(self.solver).__name__

    @property
    def stochastic(self) -> bool:
        """Whether the sampler is an SDE solver."""
        return self.solver.calculus == "sde"

    def sampling_grid(self, schedule: DDPM) -> TimeGrid:
        """Grid of the N sampling steps."""
        return GRIDS[self.grid](schedule, self.sampling_steps)

    @property
    def nfe_paper(self) -> int | None:
        """N_E + N: the two sources are encoded as one batch."""
        return self.encoding_steps + self.sampling_steps

    def expected_cost(self) -> MorphCost:
        # Cycle-SDE encodes along the sampling grid.
        encode = self.sampling_steps if self.stochastic else self.encoding_steps
        return MorphCost(self.sampling_steps, encode=encode)

    def image_size(self, bench: Workbench) -> int:
        return bench.autoencoder.network.config.image_size

    def check(self, bench: Workbench) -> None:
        self.sampling_grid(bench.autoencoder.schedule)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"optimisation_steps": 0}

    def begin(self, sources: Sources, bench: Workbench) -> Work:
        return _Sampling(self, bench, self.latents(sources, bench))

    def latents(self, sources: Sources, bench: Workbench) -> MorphLatents:
        """Interpolated latents of a batch of pairs."""
        autoencoder = bench.autoencoder
        if self.stochastic:
            seeds = [bench.seed + zlib.crc32(pair.morph_id.encode()) for pair in sources.pairs]
            x_a, x_b = sources.tensors(bench.device)
            grid = self.sampling_grid(autoencoder.schedule)
            assert isinstance(self.solver, AdditiveNoise)
            with torch.no_grad():
                return sde_morph_latents(
                    autoencoder, x_a, x_b, grid, seeds, self.weight, self.solver
                )
        a, b, failed = self.encoded(sources, bench)
        latents = morph_latents(a, b, self.weight, BLENDS[self.noise_blend])
        return replace(latents, failed=failed)

    def encoded(
        self, sources: Sources, bench: Workbench
    ) -> tuple[EncodedFace, EncodedFace, dict[int, str]]:
        """Codes and noises of both sides, and why some pairs have no pre-morph."""
        sides, failed = (sources.images_a, sources.images_b), {}
        encoded = sides
        if self.pre_morph != "none":
            mixed, failed = self._mixed(sources, bench)
            encoded = (mixed, mixed)
        a, b = (
            bench.encoder(
                image, bench.device, self.encoding_steps, self.encoding_grid, codes_of=side
            )
            for image, side in zip(encoded, sides, strict=True)
        )
        return a, b, failed

    def _mixed(self, sources: Sources, bench: Workbench) -> tuple[np.ndarray, dict[int, str]]:
        if self.pre_morph == "landmark":
            return landmark_morphs(LandmarkMorph("opencv", self.weight), sources, bench)
        share_b = self.weight * sources.images_b.astype(np.float64)
        mean = (1 - self.weight) * sources.images_a + share_b
        return np.rint(mean).astype(np.uint8), {}

    def problem(
        self,
        bench: Workbench,
        latents: MorphLatents,
        loss: Callable[[Tensor, Tensor], Tensor],
        z: Any = None,
    ) -> LatentProblem:
        """The sampler of this attack with the latents of a batch, as guidance takes it.

        Args:
            bench, latents: Network and latents.
            loss: ``(x_0, rows) -> losses``.
            z: Condition, where it is not that of the latents.
        """
        autoencoder = bench.autoencoder
        return LatentProblem(
            autoencoder.denoiser,
            latents.x_T,
            latents.z if z is None else z,
            loss=loss,
            solver=self.solver,
            grid=self.sampling_grid(autoencoder.schedule),
            noise=latents.noise,
        )

    def draw(self, bench: Workbench, latents: MorphLatents) -> Rollout:
        """Samples from latents along this attack's grid; nothing is optimised."""
        with torch.no_grad():
            return self.problem(bench, latents, lambda x_0, rows: x_0.new_zeros(len(rows))).sample()


class _Sampling:
    """DiM on a batch: nothing is iterated."""

    def __init__(self, attack: DiM, bench: Workbench, latents: MorphLatents) -> None:
        self.attack, self.bench, self.latents = attack, bench, latents

    def step(self) -> Progress:
        raise RuntimeError("DiM makes no steps before it samples")

    def finish(self) -> Morphs:
        rollout = self.attack.draw(self.bench, self.latents)
        cost = MorphCost(rollout.cost.nfe_forward, encode=self.latents.nfe)
        return Morphs(rollout.x_0, cost, self.latents.failed)
