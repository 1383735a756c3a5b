r"""DiM guided by gradients through the sampler: AdjointDEIS, the exact gradient, or any other.

The latents of DiM descend the identity loss of the morph that is sampled from them,

.. math:: (x_T, z) \gets (x_T, z) - \eta\,\nabla_{(x_T, z)} L^*(x_0(x_T, z)),

with whatever gradient method is given.  The paper's rows take AdjointDEIS-1 with N = M = 20, 50
steps of plain gradient descent, and the last iterate.

Paper: Section 5, Algorithm 2, Appendix H.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from adjointdeis.gradients import DiscreteAdjoint
from adjointdeis.gradients.base import GradientMethod
from adjointdeis.guidance.latent_optimisation import LatentOptimisation, OptimizerFactory
from adjointdeis.morphing.attack import (
    Morphs,
    Need,
    Progress,
    Sources,
    Spent,
    Workbench,
    optimizer_name,
)
from adjointdeis.morphing.dim import DiM
from adjointdeis.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class GuidedDiM(DiM):
    """DiM whose latents are optimised.

    Arguments:
        sampling_steps: N, of every sampling run.
        optimisation_steps: Gradient steps; 0 samples DiM's own latents.
        gradient: Gradient method, required when there are gradient steps.
        optimizer: Factory of the optimiser of (x_T, z).
        z_learning_rate: Learning rate of z when it differs from that of x_T.
        keep: Iterate to return, "last" as in the paper, or "best" by the identity loss.
    """

    sampling_steps: int = 20
    optimisation_steps: int = 50
    gradient: GradientMethod | None = None
    optimizer: OptimizerFactory | None = None
    z_learning_rate: float | None = None
    keep: Literal["last", "best"] = "last"

    needs: ClassVar[frozenset[Need]] = frozenset({"autoencoder", "identity"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimisation_steps < 0:
            raise ValueError(
                f"attack {self.name}: optimisation_steps={self.optimisation_steps}, expected >= 0"
            )
        if self.optimisation_steps and (self.gradient is None or self.optimizer is None):
            raise ValueError(
                f"attack {self.name} makes {self.optimisation_steps} optimisation steps and needs "
                "both a gradient method and an optimizer"
            )

    def _derived_label(self) -> str:
        parts = [super()._derived_label()]
        if self.optimisation_steps and self.gradient is not None:
            rate = getattr(self.optimizer, "keywords", {}).get("lr")
            parts = [repr(self.gradient), *parts, f"lr {rate:g}" if rate else ""]
        return ", ".join(part for part in parts if part)

    @property
    def steps(self) -> int:
        return self.optimisation_steps

    @property
    def adjoint_steps(self) -> int:
        """M, the number of adjoint steps of one gradient."""
        steps = getattr(self.gradient, "steps", None)
        return self.sampling_steps if steps is None else int(steps)

    @property
    def nfe_paper(self) -> int | None:
        """N_E + n (N + M); N_E + N without gradient steps."""
        if not self.optimisation_steps:
            return super().nfe_paper
        per_step = self.sampling_steps + self.adjoint_steps
        return self.encoding_steps + self.optimisation_steps * per_step

    def settings(self) -> dict[str, Any]:
        settings = super().settings() | {
            "optimisation_steps": self.optimisation_steps,
            "gradient": None,
            "optimizer": None,
        }
        if self.optimisation_steps:
            keywords = getattr(self.optimizer, "keywords", {})
            settings |= {
                "gradient": repr(self.gradient),
                "adjoint_steps": self.adjoint_steps,
                "states": getattr(self.gradient, "states", None),
                "learning_rate": keywords.get("lr"),
                "optimizer": optimizer_name(self.optimizer),
                "optimizer_options": {
                    key: repr(value) for key, value in sorted(keywords.items()) if key != "lr"
                },
            }
        return settings

    def notes(self) -> list[str]:
        notes = []
        if self.paper_row and self.optimisation_steps and self.optimisation_steps != 50:
            notes.append(f"{self.optimisation_steps} optimisation steps instead of the paper's 50")
        if self.keep == "best":
            notes.append(
                "returns the best iterate by the identity loss; the paper returns the last"
            )
        return notes

    def begin(self, sources: Sources, bench: Workbench) -> "_Descent":
        return _Descent(self, sources, bench)


class _Descent:
    """A batch whose latents descend."""

    def __init__(self, attack: GuidedDiM, sources: Sources, bench: Workbench) -> None:
        self.attack, self.bench = attack, bench
        self.latents = attack.latents(sources, bench)
        self.distances = bench.against(sources)
        self.spent = Spent(encode=self.latents.nfe)
        self.gradient_error: list[dict[str, float]] | None = None
        optimizer = attack.optimizer or (lambda groups: torch.optim.SGD(groups, lr=0.0))
        self.optimisation = LatentOptimisation(
            lambda x_T, z: self._draw(x_T, z, attack.gradient),
            lambda x_0: self.distances(x_0).loss,
            self.latents.x_T,
            self.latents.z,
            optimizer,
            attack.z_learning_rate,
            attack.keep,
        )

    def step(self) -> Progress:
        if self.bench.measure_gradient and not self.optimisation.steps:
            self.gradient_error = self._gradient_error()
        step = self.optimisation.step()
        self.spent.forward += step.rollout.cost.nfe_forward
        self.spent.backward += step.rollout.cost.nfe_backward
        self.spent.vjps += step.rollout.cost.vjps
        return Progress(step.loss, step.gradient_norm)

    def finish(self) -> Morphs:
        rollout, _ = self.optimisation.evaluate()
        self.spent.forward += rollout.cost.nfe_forward
        if self.attack.keep == "best":
            self.spent.forward += rollout.cost.nfe_forward  # the last iterate was evaluated too
        details = [{"gradient_error": error} for error in self.gradient_error or ()]
        failed = self.latents.failed | self.optimisation.failed
        return Morphs(rollout.x_0, self.spent, failed, details)

    def _draw(self, x_T: Tensor, z: Tensor, gradient: GradientMethod | None) -> Rollout:
        return self.attack.draw(self.bench, self.latents, x_T, z, gradient)

    def _gradient_error(self) -> list[dict[str, float]]:
        """Error of the attack's gradient over (x_T, z) against the exact one, per pair."""
        flat = []
        for method in (self.attack.gradient, DiscreteAdjoint()):
            x_T = self.latents.x_T.detach().clone().requires_grad_()
            z = self.latents.z.detach().clone().requires_grad_()
            with torch.enable_grad():
                loss = self.distances(self._draw(x_T, z, method).x_0).loss.sum()
                gradients = torch.autograd.grad(loss, (x_T, z))
            flat.append(torch.cat([g.flatten(1) for g in gradients], 1).double())
        approximate, exact = flat
        length = exact.norm(dim=1)
        relative = (approximate - exact).norm(dim=1) / length
        cosine = torch.nn.functional.cosine_similarity(approximate, exact, dim=1)
        ratio = approximate.norm(dim=1) / length
        return [
            {"relative": r, "cosine": c, "norm_ratio": n}
            for r, c, n in zip(relative.tolist(), cosine.tolist(), ratio.tolist(), strict=True)
        ]
