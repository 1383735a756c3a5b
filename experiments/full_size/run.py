"""One optimisation step at the paper's size on a CPU: time, peak memory, and floating-point work.

    python -m experiments.full_size.run
    python -m experiments.full_size.run --only flops

DiffAE FFHQ256 (168 million weights) and IResNet-100 (65 million), both with random weights; one
pair; N = M = 2 sampling and adjoint steps.  The step is the paper's: sample, identity loss, one
gradient with respect to (x_T, z), one update.  What is counted without running anything is what
one evaluation costs, from which experiments/table1 estimates hours on a GPU.
"""

import argparse
import json
import resource
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adjointdeis.faces.networks import DiffAE, DiffAEConfig, IResNet, IResNetConfig
from adjointdeis.faces.recognisers.crop import FaceCrop
from adjointdeis.gradients import AdjointDEIS, DiscreteAdjoint
from adjointdeis.guidance.latent_optimisation import LatentOptimisation
from adjointdeis.guidance.problem import LatentProblem
from adjointdeis.morphing.autoencoder import Autoencoder
from adjointdeis.morphing.dim import DiM
from adjointdeis.morphing.identity_loss import IdentityLoss
from adjointdeis.solvers import DDIM

STEPS = 2
METHODS = {"exact": DiscreteAdjoint(), "adjoint_deis": AdjointDEIS()}


def peak_gib() -> float:
    """Most memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def networks() -> tuple[nn.Module, nn.Module]:
    """The generator and the recogniser of the loss, random."""
    torch.manual_seed(0)
    return frozen(DiffAE(DiffAEConfig.ffhq256())), frozen(IResNet(IResNetConfig.r100()))


@torch.no_grad()
def enliven(generator: nn.Module, recogniser: nn.Module) -> None:
    """Random weights that let signals through, as trained ones do.

    The official initialisation ends in zeros, which would hide z; and without statistics of its
    own a hundred layers of batch normalisation let the signal grow without bound.
    """
    for weight in generator.parameters():
        if weight.ndim > 1 and not weight.any():
            weight.normal_(std=0.3 / weight[0].numel() ** 0.5)
    norms = [m for m in recogniser.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the plain mean over what is seen
        norm.train()
    recogniser(torch.rand(4, 3, 112, 112) * 2 - 1)
    recogniser.eval()


def one_step(method: str) -> dict[str, float]:
    """Seconds and peak memory of one optimisation step."""
    generator, recogniser = networks()
    enliven(generator, recogniser)
    autoencoder = Autoencoder(generator, "eps", "random", "none")  # type: ignore[arg-type]
    crop = FaceCrop(112)
    loss = IdentityLoss(lambda images: recogniser(crop(images)))
    x_T, z = torch.randn(1, 3, 256, 256), torch.randn(1, 512)
    v_a, v_b = torch.randn(2, 1, 512)
    grid = DiM(name="d", sampling_steps=STEPS).sampling_grid(autoencoder.schedule)
    problem = LatentProblem(
        autoencoder.denoiser,
        x_T,
        z,
        loss=lambda x_0, rows: loss(x_0, v_a, v_b).loss,
        solver=DDIM(),
        grid=grid,
    )
    sgd = partial(torch.optim.SGD, lr=0.1)
    optimisation = LatentOptimisation(1, sgd, METHODS[method]).start(problem)
    loaded, start = peak_gib(), time.perf_counter()
    step = optimisation.step()
    seconds = time.perf_counter() - start
    if not torch.isfinite(step.gradient_norm).all() or float(step.gradient_norm) == 0:
        raise RuntimeError("the gradient at full size is not finite, or zero")
    return {
        "seconds": round(seconds, 1),
        "peak_gib": round(peak_gib(), 2),
        "peak_gib_before": round(loaded, 2),
        "nfe": step.cost.nfe,
        "vjps": step.cost.vjps,
    }


def work() -> dict[str, float]:
    """GFLOP of one image: an evaluation of the denoiser, its VJP, the codes, the loss network."""
    with torch.device("meta"):
        generator, recogniser = networks()
        image, z, t = torch.empty(1, 3, 256, 256), torch.empty(1, 512), torch.zeros(1)
        face = torch.empty(1, 3, 112, 112)

    def count(call, *inputs) -> float:
        with FlopCounterMode(display=False) as counter:
            output = call(*inputs)
            if any(tensor.requires_grad for tensor in inputs):
                output.sum().backward()
        return round(counter.get_total_flops() / 1e9, 1)

    def tracked(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone().requires_grad_()

    return {
        "denoiser": count(generator, image, t, z),
        "denoiser_and_vjp": count(generator, tracked(image), t, tracked(z)),
        "codes": count(generator.encode, image),  # type: ignore[arg-type]
        "recogniser": count(recogniser, face),
        "recogniser_and_vjp": count(recogniser, tracked(face)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("flops", *METHODS), help="leave out the others")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the result here as JSON, too")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, object] = {"threads": arguments.threads, "steps": STEPS}
    if arguments.only in (None, "flops"):
        result["gflop"] = work()
    for method in METHODS:
        # One process a method would be needed for two honest peaks; ask with --only.
        if arguments.only in (None, method):
            result[method] = one_step(method)
    text = json.dumps(result, indent=1)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
