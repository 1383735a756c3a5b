"""Guidance algorithms as rows of the bench: settings, one call, counted cost."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.gradients import Cost, GradientMethod, PerStep
from adjointdeis.guidance.dflow import DFlow
from adjointdeis.guidance.dno import Decorrelation, direct_noise_optimisation
from adjointdeis.guidance.doodl import doodl
from adjointdeis.guidance.flowgrad import control_trajectory
from adjointdeis.guidance.freedom import FreeDoM
from adjointdeis.guidance.greedy import GreedyRun, OptimiseEps, sample_greedily
from adjointdeis.guidance.latent_optimisation import LatentOptimisation
from adjointdeis.guidance.lookahead import Lookahead
from adjointdeis.guidance.per_sample import Sphere
from adjointdeis.harness.bench.problem import BenchError, Kind, Latents, Outcome
from adjointdeis.rollout import Rollout, sample

Optimizer = Literal["adam", "sgd"]


def optimizer_factory(name: Optimizer, lr: float):
    """A torch optimiser as a factory of parameter groups."""
    known = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    if name not in known:
        raise BenchError(f"optimizer={name!r}: expected one of {', '.join(known)}")
    return partial(known[name], lr=lr)


@dataclass(frozen=True)
class Plain:
    """No guidance: the sampler from its initial noise."""

    kind: ClassVar[Kind] = "latents"

    def run(self, instance: Latents) -> Outcome:
        with torch.no_grad():
            rollout = sample(
                instance.denoiser,
                instance.x_T,
                instance.z,
                solver=instance.solver,
                grid=instance.grid,
            )
        return Outcome(instance.quality(rollout.x_0), rollout.cost)


@dataclass(frozen=True)
class Reference:
    """Samples of a perfect method, by the task's closed form."""

    kind: ClassVar[Kind] = "latents"

    def run(self, instance: Latents) -> Outcome:
        if instance.reference is None:
            raise BenchError("this task has no closed-form reference")
        return Outcome(instance.quality(instance.reference()), Cost())


@dataclass(frozen=True)
class Optimised:
    """Latent optimisation by any gradient method; the best iterate by the loss is kept.

    Args:
        gradient: Any gradient method.
        steps: Gradient steps.
        optimizer, lr: Torch optimiser.
        scheduled: One condition per step instead of one for all.
        sphere: Keep the norm of x_T.
    """

    gradient: GradientMethod
    steps: int = 20
    optimizer: Optimizer = "adam"
    lr: float = 0.05
    scheduled: bool = False
    sphere: bool = False
    kind: ClassVar[Kind] = "latents"

    def run(self, instance: Latents) -> Outcome:
        optimisation = LatentOptimisation(
            _sampler(instance, self.gradient, self.scheduled),
            instance.objective,
            instance.x_T,
            _schedule(instance) if self.scheduled else instance.z,
            optimizer_factory(self.optimizer, self.lr),
            keep="best",
            optimise=instance.moving,
            constraint=Sphere.through(instance.x_T) if self.sphere else None,
        )
        return _finish(optimisation, instance, self.steps)


@dataclass(frozen=True)
class DirectNoise:
    """DNO: x_T by normalised gradients, kept white.

    Args:
        gradient: Any gradient method.
        steps: Gradient steps.
        lr: Of Adam.
        weight: Of the decorrelation penalty.
        dims: Axes with neighbours; empty where the coordinates have no order, which leaves the
            penalty out.
    """

    gradient: GradientMethod
    steps: int = 20
    lr: float = 0.05
    weight: float = 1000.0
    dims: tuple[int, ...] = (-2, -1)
    kind: ClassVar[Kind] = "latents"

    def run(self, instance: Latents) -> Outcome:
        optimisation = direct_noise_optimisation(
            _sampler(instance, self.gradient, False),
            instance.objective,
            instance.x_T,
            instance.z,
            weight=self.weight if len(self.dims) else 0.0,
            penalty=Decorrelation(tuple(self.dims)) if len(self.dims) else None,
            optimizer=optimizer_factory("adam", self.lr),
        )
        return _finish(optimisation, instance, self.steps)


@dataclass(frozen=True)
class Reversed:
    """DOODL: a tied pair of EDICT, clipped gradients with momentum, the norm kept.

    Args:
        steps: Gradient steps.
        lr, clip: See :func:`doodl`.
        sampling_steps: N of EDICT, which needs more of them than DDIM; uniform in log-SNR over
            the instance's range of times.
    """

    steps: int = 20
    lr: float = 1.0
    clip: float = 1e-3
    sampling_steps: int = 80
    kind: ClassVar[Kind] = "latents"

    def run(self, instance: Latents) -> Outcome:
        times, generator = instance.grid.t, torch.Generator().manual_seed(0)
        grid = TimeGrid.uniform_lmbda(
            instance.grid.schedule, self.sampling_steps, float(times[-1]), float(times[0])
        )
        shape = (self.steps, *instance.x_T.shape)
        pushes = torch.randn(shape, generator=generator, dtype=torch.float64)
        optimisation = doodl(
            instance.denoiser,
            instance.objective,
            instance.x_T,
            instance.z,
            grid=grid,
            lr=self.lr,
            clip=self.clip,
            draw=lambda step: pushes[step],
        )
        for _ in range(self.steps):
            optimisation.step()
        rollout, _ = optimisation.evaluate()
        return Outcome(instance.quality(rollout.x_0[0]), optimisation.cost)


@dataclass(frozen=True)
class QuasiNewton:
    """D-Flow: L-BFGS on x_T.

    Args:
        gradient: An exact gradient method.
        evaluations: Most rollouts with a gradient, of each sample.
    """

    gradient: GradientMethod
    evaluations: int = 20
    kind: ClassVar[Kind] = "latents"

    def run(self, instance: Latents) -> Outcome:
        flow = DFlow(
            iterations=self.evaluations, evaluations=self.evaluations, gradient=self.gradient
        )
        found = flow.optimise(
            instance.denoiser,
            instance.x_T,
            instance.z,
            loss=instance.loss,
            solver=instance.solver,
            grid=instance.grid,
        )
        # Samples run one by one; per sample is what the other rows count for the whole batch.
        count = len(instance.x_T)
        cost = Cost(
            nfe_forward=round(found.cost.nfe_forward / count),
            nfe_backward=round(found.cost.nfe_backward / count),
            vjps=round(found.cost.vjps / count),
        )
        cost.holds(found.cost.peak_latents, found.cost.peak_graphs)
        return Outcome(instance.quality(found.x_0), cost)


@dataclass(frozen=True)
class Controls:
    """FlowGrad's controls along the trajectory.

    Args:
        gradient: A method with ``z_t``.
        steps: Gradient steps.
        optimizer, lr: Torch optimiser.
    """

    gradient: GradientMethod
    steps: int = 10
    optimizer: Optimizer = "sgd"
    lr: float = 1.0
    kind: ClassVar[Kind] = "latents"

    def run(self, instance: Latents) -> Outcome:
        optimisation = control_trajectory(
            instance.denoiser,
            instance.objective,
            instance.x_T,
            instance.z,
            solver=instance.solver,
            grid=instance.grid,
            optimizer=optimizer_factory(self.optimizer, self.lr),
            gradient=self.gradient,
        )
        return _finish(optimisation, instance, self.steps)


@dataclass(frozen=True)
class Guided:
    """FreeDoM, with time travel and a lookahead.

    Args:
        scale, rule, repeats: See :class:`FreeDoM`.
        low, high: Times between which steps are guided, and repeated.
        lookahead: k, or "all".
    """

    scale: float = 0.2
    rule: Literal["alpha", "rms"] = "rms"
    repeats: int = 1
    low: float = 0.0
    high: float = 1.0
    lookahead: int | str = 1
    kind: ClassVar[Kind] = "latents"

    def run(self, instance: Latents) -> Outcome:
        window = (self.low, self.high)
        freedom = FreeDoM(
            scale=self.scale,
            rule=self.rule,
            window=window,
            repeats=self.repeats,
            travel=window,
            lookahead=Lookahead(self.lookahead),  # type: ignore[arg-type]
        )
        returns = sum(freedom.visits(instance.grid)) - instance.grid.steps
        generator = torch.Generator().manual_seed(0)
        travel = torch.randn(
            returns, *instance.x_T.shape, generator=generator, dtype=torch.float64
        ).to(instance.x_T)
        guided = freedom.sample(
            instance.denoiser,
            instance.x_T,
            instance.z,
            loss=instance.objective,
            solver=instance.solver,
            grid=instance.grid,
            travel_noise=list(travel) or None,
        )
        return Outcome(instance.quality(guided.x_0), guided.cost)


@dataclass(frozen=True)
class Greedy:
    """Greedy guidance: the noise prediction of every step is optimised, the network never.

    Args:
        steps: Loss gradients per sampling step.
    """

    steps: int = 20
    lr: float = 0.01
    kind: ClassVar[Kind] = "latents"

    def run(self, instance: Latents) -> Outcome:
        run = GreedyRun(
            instance.denoiser,
            instance.x_T,
            (instance.z,),
            solver=instance.solver,
            grid=instance.grid,
            objective=instance.objective,
            strategy=OptimiseEps(
                self.steps, partial(torch.optim.Adam, lr=self.lr, betas=(0.5, 0.9))
            ),
        )
        x_0, _ = sample_greedily(run)
        note = f"{run.loss_gradients} gradients of the loss alone"
        return Outcome(instance.quality(x_0), run.cost, [note])


def _schedule(instance: Latents) -> Tensor:
    return instance.z.unsqueeze(1).repeat_interleave(instance.grid.steps, 1)


def _sampler(instance: Latents, gradient: GradientMethod, scheduled: bool):
    def run(x_T: Tensor, z: Tensor) -> Rollout:
        return sample(
            instance.denoiser,
            x_T,
            PerStep(z.unbind(1)) if scheduled else z,
            solver=instance.solver,
            grid=instance.grid,
            gradient=gradient,
        )

    return run


def _finish(optimisation: LatentOptimisation, instance: Latents, steps: int) -> Outcome:
    for _ in range(steps):
        optimisation.step()
    rollout, _ = optimisation.evaluate()
    notes = [f"sample {k} {text}" for k, text in optimisation.failed.items()]
    return Outcome(instance.quality(rollout.x_0), optimisation.cost, notes)
