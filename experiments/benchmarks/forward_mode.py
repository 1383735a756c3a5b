"""What ForwardMode costs as a function of K, against the exact gradient of a backward pass.

python -m experiments.benchmarks.forward_mode [--directions 1 4 16 64] [--rounds 3]

z is a vector of K numbers that shifts the channels of a small convolutional network, or the units
of a network of linear layers; x_T and the weights want no gradient. Seconds are processor time of
this process, which other work on the machine does not enter. Bytes are measured at N and at 10 N.
"""

import statistics
import time
from typing import Any

import torch
from torch import Tensor, nn

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.evaluation.markdown import table
from adjointdeis.evaluation.storage import write_json
from adjointdeis.gradients import DiscreteAdjoint, ForwardMode, GradientMethod
from adjointdeis.harness.live_memory import peak_bytes
from adjointdeis.solvers import DDIM
from experiments.common.options import parser, started

STEPS = 20


class Convolutions(nn.Module):
    """Three convolutions of 32 channels on images of 32 x 32."""

    shape = (2, 3, 32, 32)

    def __init__(self, numbers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
        self.norm, self.last = nn.GroupNorm(8, 32), nn.Conv2d(32, 3, 3, padding=1)
        self.shift = nn.Linear(numbers, 32)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        h = self.first(x) + (self.shift(z) + t.to(x))[:, None, None]
        return self.last(nn.functional.silu(self.middle(nn.functional.silu(self.norm(h)))))


class Layers(nn.Module):
    """Linear layers 64-256-64 in batches of 16."""

    shape = (16, 64)

    def __init__(self, numbers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 256), nn.Linear(256, 64)
        self.shift = nn.Linear(numbers, 256)

    def forward(self, x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x) + self.shift(z) + t.to(x)))


def run(network: nn.Module, numbers: int, method: GradientMethod, steps: int) -> Any:
    """z, and x_0 of N steps with a graph to it."""
    generator = torch.Generator().manual_seed(1)
    x_T = torch.randn(network.shape, generator=generator)
    z = torch.randn(numbers, generator=generator).requires_grad_()
    grid = TimeGrid.uniform_lmbda(VPLinear(), steps)
    return z, sample(network, x_T, z, solver=DDIM(), grid=grid, gradient=method).x_0


def gradient(z: Tensor, x_0: Tensor) -> Tensor:
    """dL/dz; the graph stays for another loss."""
    return torch.autograd.grad(x_0.square().mean(), z, retain_graph=True)[0]


def measured(kind: type[nn.Module], numbers: int, rounds: int) -> dict[str, Any]:
    """Medians of processor seconds of a gradient and of each further loss, and peaks of bytes."""
    network = kind(numbers).requires_grad_(False)
    methods = {"exact": DiscreteAdjoint(), "forward": ForwardMode(limit=numbers)}
    one, other = (gradient(*run(network, numbers, m, STEPS)) for m in methods.values())
    torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-6)
    first: dict[str, list[float]] = {name: [] for name in methods}
    further: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            begun = time.process_time()
            z, x_0 = run(network, numbers, method, STEPS)
            gradient(z, x_0)
            ended = time.process_time()
            gradient(z, x_0)
            first[name].append(ended - begun)
            further[name].append(time.process_time() - ended)
    return {
        name: {
            "seconds": statistics.median(first[name]),
            "seconds, further loss": statistics.median(further[name]),
            "bytes": [
                peak_bytes(lambda m=method, n=n: gradient(*run(network, numbers, m, n)))
                for n in (STEPS, 10 * STEPS)
            ],
        }
        for name, method in methods.items()
    }


def main() -> None:
    """Prints the tables and writes forward_mode.json."""
    command = parser(__doc__, __file__)
    command.add_argument("--directions", type=int, nargs="+", default=[1, 4, 16, 64])
    command.add_argument("--rounds", type=int, default=3)
    options = started(command)
    result: dict[str, Any] = {"torch": torch.__version__, "steps": STEPS}
    for kind in (Convolutions, Layers):
        found = {k: measured(kind, k, options.rounds) for k in options.directions}
        rows = []
        for numbers, each in found.items():
            pair = [each["exact"], each["forward"]]
            rows.append(
                [
                    numbers,
                    *(f"{1e3 * one['seconds']:.0f}" for one in pair),
                    f"{pair[1]['seconds'] / pair[0]['seconds']:.1f}",
                    *(f"{1e3 * one['seconds, further loss']:.2f}" for one in pair),
                    *(" / ".join(f"{b / 2**20:.2f}" for b in one["bytes"]) for one in pair),
                ]
            )
        names = ["K", "exact, ms", "forward, ms", "ratio", "further loss, exact", "forward"]
        peaks = ["MiB at N / 10 N, exact", "forward"]
        print(kind.__doc__, table([*names, *peaks], rows), sep="\n")
        result[kind.__name__] = found
    write_json(result, options.out / "forward_mode.json")


if __name__ == "__main__":
    main()
