"""How the price of a gradient grows with N, against a plain autograd loop, on a tiny network.

python -m experiments.benchmarks.growth [--counts 20 100 1000] [--rounds 5] [--out FOLDER]

Linear layers 65-256-64 in batches of 16: bookkeeping shows where evaluations are cheap. Seconds are
processor time of this process, which other work on the machine does not enter. With diffrax and jax
installed (`pip install diffrax`), its Euler solve and recursive checkpoints run beside.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adjointdeis.diffusion import TimeGrid, VPLinear
from adjointdeis.diffusion.transition import eps_weight, signal_ratio
from adjointdeis.evaluation.markdown import table
from adjointdeis.evaluation.storage import write_json
from adjointdeis.gradients import AdjointDEIS, DiscreteAdjoint
from experiments.benchmarks.measure import ratio
from experiments.benchmarks.peers import (
    TimedProblem,
    floor,
    plain_backpropagation,
    through,
    torchdiffeq_adjoint,
)
from experiments.common.options import parser, started

PLAIN = "plain autograd loop"


class Tiny(nn.Module):
    """Two linear layers of x, with t; z enters as a shift."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(65, 256), nn.Linear(256, 64)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        time_ = t.to(x).expand(len(x), 1)
        return self.second(torch.tanh(self.first(torch.cat((x + z, time_), 1))))


def problem(steps: int) -> TimedProblem:
    """Of N steps, frozen weights."""
    generator = torch.Generator().manual_seed(1)
    x_T, z, cotangent = torch.randn(3, 16, 64, generator=generator)
    grid = TimeGrid.uniform_lmbda(VPLinear(), steps)
    return TimedProblem(Tiny().requires_grad_(False), grid, x_T, z, cotangent)


def diffrax_gradient(steps: int) -> Callable[[], Any] | None:
    """The same network's probability flow over rho by diffrax, compiled; None without it."""
    try:
        import diffrax
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None
    given, tiny = problem(steps), Tiny()
    weights = [jnp.asarray(p.detach().numpy()) for p in tiny.parameters()]
    rho = jnp.asarray(np.array([float(given.grid[i].rho) for i in range(steps + 1)]))
    nodes = [given.grid[i] for i in range(steps)]
    alpha = jnp.asarray(np.array([float(s.alpha) for s in nodes]))
    times = jnp.asarray(np.array([float(s.t) for s in nodes]))

    def field(r: Any, y: Any, z: Any) -> Any:
        # Euler asks at nodes only, and rho falls from node to node.
        at = jnp.clip(jnp.searchsorted(-rho, -r), 0, steps - 1)
        w1, b1, w2, b2 = weights
        t = jnp.full((y.shape[0], 1), times[at])
        return jnp.tanh(jnp.concatenate((alpha[at] * y + z, t), 1) @ w1.T + b1) @ w2.T + b2

    def loss(x_T: Any, z: Any) -> Any:
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field), diffrax.Euler(), rho[0], rho[-1], None, x_T / alpha[0], args=z,
            stepsize_controller=diffrax.StepTo(ts=rho), max_steps=steps + 1,
        )  # fmt: skip
        return (solution.ys[-1] * jnp.asarray(given.cotangent.numpy())).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1)))
    x_T, z = (jnp.asarray(value.numpy()) for value in (given.x_T, given.z))
    return lambda: jax.block_until_ready(compiled(x_T, z))


def compiled_gradient(steps: int, chunk: int = 10) -> Callable[[], Any]:
    """Chunks of DDIM steps compiled as one, network and product together, each step compared.

    What a compiled exact gradient costs where shapes are static; no method of the package. The
    numbers of a step enter as tensors: a solver's own ``step`` has them as constants, and would be
    compiled again for every chunk.
    """
    given, nodes = problem(steps), list(problem(steps).steps())
    times = torch.stack([s.t for s, _ in nodes]).split(chunk)
    ratios = torch.tensor([signal_ratio(s, t) for s, t in nodes]).split(chunk)
    weights = torch.tensor([eps_weight(s, t) for s, t in nodes]).split(chunk)
    numbers = [
        tuple(part.clone() for part in parts) for parts in zip(times, ratios, weights, strict=True)
    ]

    def forward(x: Tensor, z: Tensor, times: Tensor, ratios: Tensor, weights: Tensor) -> Any:
        states = []
        for k in range(chunk):
            x = ratios[k] * x + weights[k] * given.denoiser(x, times[k], z)
            states.append(x)
        return tuple(states)

    def backward(a: Tensor, x: Tensor, z: Tensor, *numbers: Tensor) -> Any:
        def last(x: Tensor, z: Tensor) -> Any:
            states = forward(x, z, *numbers)
            return states[-1], states

        found: Any = torch.func.vjp(last, x, z, has_aux=True)
        _, product, states = found
        return states, *product(a)

    taken, pulled = torch.compile(forward, dynamic=False), torch.compile(backward, dynamic=False)

    @torch.no_grad()
    def gradients() -> Any:
        states = [given.x_T]
        for part in numbers:
            states.extend(taken(states[-1], given.z, *part))
        a, g_z = given.cotangent, torch.zeros_like(given.z)
        for place, part in reversed(list(enumerate(numbers))):
            first = place * chunk
            again, a, added = pulled(a, states[first], given.z, *part)
            g_z += added
            for k, state in enumerate(again):
                if not torch.allclose(state, states[first + 1 + k], rtol=1e-4, atol=1e-5):
                    raise RuntimeError(f"step {first + k}, taken again, ends somewhere else")
        return a, g_z

    return gradients


def methods(steps: int, compiled: bool = False) -> dict[str, Callable[[], Any]]:
    """What is timed at N steps."""
    given = problem(steps)
    work: dict[str, Callable[[TimedProblem], Any]] = {
        PLAIN: plain_backpropagation,
        "floor: N F + N (F + VJP)": floor,
        "exact": through(DiscreteAdjoint()),
        'exact, budget="64 MiB"': through(DiscreteAdjoint(budget="64 MiB")),
        "AdjointDEIS-1": through(AdjointDEIS()),
        "torchdiffeq, adjoint": torchdiffeq_adjoint,
    }
    found: dict[str, Callable[[], Any]] = {
        name: (lambda f=function: f(given)) for name, function in work.items()
    }
    if compiled:
        found["ten steps compiled as one"] = compiled_gradient(steps)
    other = diffrax_gradient(steps)
    return found if other is None else {**found, "diffrax, compiled": other}


def measured(
    steps: int, rounds: int, only: Sequence[str] = (), compiled: bool = False
) -> dict[str, Any]:
    """Processor seconds of every method, and ratios to the plain loop within a round."""
    work = methods(steps, compiled)
    if only:
        work = {name: work[name] for name in work if name == PLAIN or name.startswith(tuple(only))}
    times: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, function in work.items():
            begun = time.process_time()
            function()
            if number or rounds == 1:  # the first round warms up, and compiles
                times[name].append(time.process_time() - begun)
    return {
        name: {
            "seconds": statistics.median(values),
            "least": min(values),
            "per step": statistics.median(values) / steps,
            "to the plain loop": ratio(times, name, PLAIN),
        }
        for name, values in times.items()
    }


def main() -> None:
    """Prints the table and writes growth.json."""
    command = parser(__doc__, __file__)
    command.add_argument("--counts", type=int, nargs="+", default=[20, 100, 1000])
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--only", nargs="+", default=[], help="beginnings of methods' names")
    command.add_argument("--compiled", action="store_true", help="time compiled steps; minutes")
    options = started(command)
    found = {
        steps: measured(steps, options.rounds, options.only, options.compiled)
        for steps in options.counts
    }
    rows = []
    for name in found[options.counts[0]]:
        each = [counted[name] for counted in found.values()]
        cells = [
            f"{1e6 * e['per step']:.0f} ({e['to the plain loop']['median']:.2f})" for e in each
        ]
        rows.append([name, *cells])
    print(table(["us per step (to the plain loop)", *(f"N = {n}" for n in found)], rows))
    write_json({"torch": torch.__version__, "counts": found}, options.out / "growth.json")


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    main()
