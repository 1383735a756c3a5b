"""What a rollout and its gradient cost, counted while they run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_map_only

from adjointdeis.diffusion.denoiser import is_wider
from adjointdeis.diffusion.prediction import x0_from_eps
from adjointdeis.gradients.reachable import next_number, version


@dataclass
class Cost:
    """Counters of one rollout; the backward pass adds to the same object.

    Attributes:
        nfe_forward: network evaluations of the sampling run.
        nfe_backward: network evaluations made for the gradient, those that build a graph
            included; plain backpropagation has none.
        vjps: vector-Jacobian products, one for each network evaluation that is pulled through;
            with ``ForwardMode`` Jacobian-vector products.
        peak_latents: largest number of latents held for the gradient at one time, solver
            history included.
        peak_graphs: largest number of network evaluations whose activations are alive at one
            time; N for plain backpropagation, 1 for methods that work step by step, more for
            ``DiscreteAdjoint`` where these take fewer bytes than the stored latents.
        in_backward: whether evaluations are counted as those of the gradient now.
    """

    nfe_forward: int = 0
    nfe_backward: int = 0
    vjps: int = 0
    peak_latents: int = 0
    peak_graphs: int = 0
    in_backward: bool = field(default=False, repr=False)

    @property
    def nfe(self) -> int:
        """All network evaluations so far, the paper's N + M."""
        return self.nfe_forward + self.nfe_backward

    def evaluated(self, count: int) -> None:
        """Record network evaluations, for whichever pass is running."""
        if self.in_backward:
            self.nfe_backward += count
        else:
            self.nfe_forward += count

    def add(self, other: "Cost") -> None:
        """Add the counters of another rollout; of what is held at one time the larger stays."""
        self.nfe_forward += other.nfe_forward
        self.nfe_backward += other.nfe_backward
        self.vjps += other.vjps
        self.holds(other.peak_latents, other.peak_graphs)

    def since(self, before: "Cost") -> "Cost":
        """What was added after a copy of these counters was taken; the peaks are of both."""
        return Cost(
            self.nfe_forward - before.nfe_forward,
            self.nfe_backward - before.nfe_backward,
            self.vjps - before.vjps,
            self.peak_latents,
            self.peak_graphs,
        )

    def holds(self, latents: int, graphs: int = 0) -> None:
        """Record what is held now."""
        self.peak_latents = max(self.peak_latents, latents)
        self.peak_graphs = max(self.peak_graphs, graphs)


def _called(x: Tensor, t: Tensor, z: Any) -> str:
    """How the denoiser was called, for an error that it raises itself."""
    shapes = tree_map_only(Tensor, lambda each: f"{each.dtype} {tuple(each.shape)}", z)
    return (
        f"It was called as denoiser(x, t, z) with x {x.dtype} {tuple(x.shape)}, z {shapes}, and "
        f"t = {float(t):.4g}, a float64 scalar on the CPU: write t.to(x), or "
        "t.to(x).expand(x.shape[0]), where it enters a layer. A network of integer timesteps goes "
        "into FromTimesteps(network, DDPM(betas)), one of other libraries into from_diffusers, "
        "from_k_diffusion, ... (condition= is the name of its argument for z)."
    )


@dataclass(eq=False)
class CountedDenoiser:
    """The denoiser that a solver is given: counts its evaluations, refuses times outside [0, 1].

    Attributes:
        denoiser, cost: the network as it was given to ``sample``, and counters.
        works_in_place: whether an evaluation has changed its x.
        observer: called with (x, t, output) of every evaluation, where someone wants to know.
        graphs: called with (x, t, z, output) and the number of the evaluation's first node; None
            where nobody compares graphs.
        wider: whether an output had more channels than x.
        remembers: whether to keep the first evaluation of a step, and its graph with it.
        first: (x, t, output) of the first evaluation since this was set to None.
        edges: where the outputs since this was emptied lie in their graph; None: not noted.
    """

    denoiser: Callable[..., Tensor]
    cost: Cost
    works_in_place: bool = False
    observer: Callable[[Tensor, Tensor, Tensor], None] | None = None
    graphs: Callable[[Tensor, Tensor, Any, Tensor, int], None] | None = None
    wider: bool = False
    remembers: bool = False
    first: tuple[Tensor, Tensor, Tensor] | None = None
    edges: list[GradientEdge] | None = None

    def modules(self) -> list[nn.Module]:
        """The modules of the denoiser, where it is one."""
        return list(self.denoiser.modules()) if isinstance(self.denoiser, nn.Module) else []

    def count(self, evaluations: int = 1) -> None:
        """Record evaluations that were made without this object (see ``count_evaluations``)."""
        self.cost.evaluated(evaluations)

    def data(self, x: Tensor, t: Tensor, z: Any) -> Tensor:
        """The denoiser's data prediction, where alpha = 0 and eps says nothing about the data."""
        self._count(t)
        if not hasattr(self.denoiser, "data"):
            return x0_from_eps(x, x, alpha=0.0, sigma=1.0)  # raises, and says what to do
        output = self.denoiser.data(x, t, z)
        is_wider(output, x)
        self._note(output)
        return output

    def _note(self, output: Tensor) -> None:
        if self.edges is not None and output.requires_grad:
            self.edges.append(get_gradient_edge(output))

    def __post_init__(self) -> None:
        # Looked up once: a module without them is slow to say so.
        self._evaluations = getattr(self.denoiser, "evaluations", 1)
        self._evaluations_at = getattr(self.denoiser, "evaluations_at", None)

    def _count(self, t: Tensor) -> None:
        # Guidance in an interval makes two evaluations at some times and one at others.
        count = self._evaluations_at
        self.cost.evaluated(count(t) if count else self._evaluations)

    def __call__(self, x: Tensor, t: Tensor, z: Any) -> Tensor:
        time, before = float(t), version(x)
        if not 0.0 <= time <= 1.0:
            raise ValueError(f"the network was about to be evaluated at t = {time}")
        self._count(t)
        number = 0 if self.graphs is None else next_number()
        try:
            output = self.denoiser(x, t, z)
        except (AttributeError, IndexError, RuntimeError, TypeError) as error:
            if self.cost.nfe <= self._evaluations:  # a later one was called in the same way
                error.add_note(_called(x, t, z))
            raise
        if not isinstance(output, Tensor) or output.shape != x.shape:
            self.wider = is_wider(output, x)
        if float(t) != time:
            raise ValueError(
                "the denoiser changes t in place, and with it the time grid: write t = t * 1000 "
                "instead of t.mul_(1000) or t *= 1000"
            )
        self.works_in_place = self.works_in_place or version(x) != before
        self._note(output)
        if self.remembers and self.first is None:
            self.first = (x, t, output)
        if self.observer is not None:
            self.observer(x, t, output)
        if self.graphs is not None:
            self.graphs(x, t, z, output, number)
        return output
