r"""DiM guided by gradients through the sampler: AdjointDEIS, the exact gradient, or any other.

The latents of DiM descend the identity loss of the morph that is sampled from them,

.. math:: (x_T, z) \gets (x_T, z) - \eta\,\nabla_{(x_T, z)} L^*(x_0(x_T, z)),

with whatever gradient method is given.  The paper's rows take AdjointDEIS-1 with N = M = 20, 50
steps of plain gradient descent, and the last iterate.

Paper: Section 5, Algorithm 2, Appendix H.
"""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from adjointdeis.gradients import DiscreteAdjoint, GradientMethod
from adjointdeis.guidance.latent_optimisation import LatentDescent, LatentOptimisation
from adjointdeis.guidance.problem import ADAM, OptimizerFactory
from adjointdeis.morphing.attack import (
    MorphCost,
    Morphs,
    Progress,
    Sources,
    Workbench,
    optimizer_name,
)
from adjointdeis.morphing.dim import DiM


def _changed(method: GradientMethod) -> str:
    """The method with those of its settings that are not the default: ``AdjointDEIS(steps=5)``."""
    if not is_dataclass(method):  # another package's
        return repr(method)
    given = [(field, getattr(method, field.name)) for field in fields(method)]
    changed = [f"{field.name}={value!r}" for field, value in given if value != field.default]
    return type(method).__name__ + (f"({', '.join(changed)})" if changed else "")


@dataclass(frozen=True, kw_only=True)
class GuidedDiM(DiM):
    """DiM whose latents are optimised.

    Args:
        sampling_steps: N, of every sampling run.
        optimisation_steps: Gradient steps; 0 samples DiM's own latents.
        gradient: Gradient method, required when there are gradient steps.
        optimizer: Factory of the optimiser of (x_T, z).
        z_learning_rate: Learning rate of z when it differs from that of x_T.
        keep: Iterate to return, "last" as in the paper, or "best" by the identity loss.
        stop_similarity: Stop a pair at the first iterate that the identity network finds at least
            this similar (cosine) to both sources; it costs nothing from then on. None makes every
            step, as the paper does.
    """

    sampling_steps: int = 20
    optimisation_steps: int = 50
    gradient: GradientMethod | None = None
    optimizer: OptimizerFactory | None = None
    z_learning_rate: float | None = None
    keep: Literal["last", "best"] = "last"
    stop_similarity: float | None = None

    resources: ClassVar[frozenset[str]] = frozenset({"autoencoder", "encoder", "identity"})
    guided: ClassVar[bool] = True

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
        if self.optimisation_steps and self.gradient is not None:
            # A sampler and a gradient that cannot go together are refused before any encoding.
            self.gradient.refuse(self.solver, ("x_T", "z"))
            recorded = getattr(self.gradient, "states", None) == "recorded"
            if recorded and self.adjoint_steps > self.sampling_steps:
                raise ValueError(
                    f"attack {self.name}: gradient.steps={self.adjoint_steps} adjoint steps at the "
                    f"recorded states of sampling_steps={self.sampling_steps}: set gradient.steps "
                    f"to {self.sampling_steps} or less, or gradient.states=interpolated"
                )
        if self.stop_similarity is not None and not -1 < self.stop_similarity < 1:
            raise ValueError(
                f"attack {self.name}: stop_similarity={self.stop_similarity}, expected a cosine "
                "between -1 and 1, or null to make every step"
            )

    def _derived_label(self) -> str:
        parts = [super()._derived_label()]
        if self.optimisation_steps and self.gradient is not None:
            rate = getattr(self.optimizer, "keywords", {}).get("lr")
            parts = [_changed(self.gradient), *parts, f"lr {rate:g}" if rate else ""]
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

    def expected_cost(self) -> MorphCost:
        """At most: a pair may stop early, and a method may evaluate less or more than M times."""
        runs = self.optimisation_steps + (2 if self.keep == "best" else 1)
        products = self.optimisation_steps * self.adjoint_steps
        # A graph that is kept is not evaluated again.
        kept = min(getattr(self.gradient, "keep_activations", 0), self.adjoint_steps)
        again = self.optimisation_steps * (self.adjoint_steps - kept)
        plain = super().expected_cost()
        return MorphCost(runs * self.sampling_steps, again, products, encode=plain.encode)

    def device_cost(self) -> MorphCost:
        # The identity network is differentiated at the end of every pull through the sampler.
        return replace(super().device_cost(), loss_gradients=self.optimisation_steps)

    @property
    def stored_latents(self) -> int:
        return self.sampling_steps + 1

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
        if self.stop_similarity is not None:
            notes.append(
                f"stops a pair once both similarities reach {self.stop_similarity:g}; evaluations "
                "are means over pairs"
            )
        return notes

    def begin(self, sources: Sources, bench: Workbench) -> "_Descent":
        return _Descent(self, sources, bench)


class _Descent:
    """A batch whose latents descend; pairs that have stopped are sampled no more."""

    def __init__(self, attack: GuidedDiM, sources: Sources, bench: Workbench) -> None:
        self.attack, self.bench = attack, bench
        self.latents = attack.latents(sources, bench)
        self.distances = bench.against(sources)
        self.costs = [MorphCost(encode=self.latents.nfe) for _ in sources.pairs]
        self.seen = torch.full((2, len(sources)), float("nan"))
        self.gradient_error: list[dict[str, float]] | None = None
        self.problem = attack.problem(bench, self.latents, self._loss)
        algorithm = LatentOptimisation(
            attack.optimisation_steps,
            attack.optimizer or ADAM,
            attack.gradient,
            attack.z_learning_rate,
            attack.keep,
            None if attack.stop_similarity is None else self._accepts,
        )
        self.optimisation = cast(LatentDescent, algorithm.start(self.problem))

    def step(self) -> Progress:
        if self.bench.measure_gradient and not self.optimisation.steps:
            self.gradient_error = self._gradient_error()
        if not self.optimisation.finished:
            step = self.optimisation.step()
            assert step.rows is not None
            for pair in step.rows.tolist():
                self.costs[pair].add(step.cost)
            # A pair that has stopped keeps showing the loss of what was accepted.
            self.seen[0, step.rows.cpu()] = step.loss.float().cpu()
            self.seen[1, step.rows.cpu()] = step.gradient_norm.float().cpu()
        loss, norm = self.seen.clone()
        return Progress(loss, norm)

    def finish(self) -> Morphs:
        under_way = self.optimisation.rows.tolist()
        rollout, _ = self.optimisation.evaluate()
        # With keep="best" the last iterate was evaluated too.
        runs = 2 if self.attack.keep == "best" else 1
        for pair in under_way:
            self.costs[pair].nfe_forward += runs * rollout.cost.nfe_forward
        details: list[dict[str, Any]] = [{} for _ in self.costs]
        for pair, error in enumerate(self.gradient_error or ()):
            details[pair]["gradient_error"] = error
        if self.attack.stop_similarity is not None:
            for pair, cost in enumerate(self.costs):
                details[pair]["nfe"] = cost.counters()
                details[pair]["stopped_at"] = self.optimisation.stopped.get(pair)
        costliest = max(self.costs, key=lambda cost: cost.nfe_forward + cost.vjps)
        failed = self.latents.failed | self.optimisation.failed
        return Morphs(rollout.x_0, costliest, failed, details)

    def _loss(self, x_0: Tensor, rows: Tensor) -> Tensor:
        self.found = self.distances(x_0, rows)
        return self.found.loss

    def _accepts(self, x_0: Tensor, rows: Tensor) -> Tensor:
        # The loss of the same images was asked for just before.
        farther, wanted = self.found.farthest.detach(), self.attack.stop_similarity
        assert wanted is not None
        return 1.0 - farther >= wanted

    def _gradient_error(self) -> list[dict[str, float]]:
        """Error of the attack's gradient over (x_T, z) against the exact one, per pair."""
        flat = []
        for method in (self.attack.gradient, DiscreteAdjoint()):
            x_T = self.latents.x_T.detach().clone().requires_grad_()
            z = self.latents.z.detach().clone().requires_grad_()
            with torch.enable_grad():
                x_0 = self.problem.sample(x_T, z, gradient=method).x_0
                loss = self.distances(x_0).loss.sum()
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
