"""Measures every gradient against its floor and against its peers; table, JSON, plot.

python -m experiments.benchmarks.run                      everything, at most 12 minutes on a CPU
python -m experiments.benchmarks.run --minutes 1 --networks mini
python -m experiments.benchmarks.run --device cuda
"""

import argparse
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adjointdeis.diffusion.denoiser import FromTimesteps
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.schedule import DDPM
from adjointdeis.evaluation.markdown import table
from adjointdeis.evaluation.storage import write_json
from adjointdeis.faces.networks import DiffAE, DiffAEConfig
from adjointdeis.harness import assets
from adjointdeis.harness.live_memory import peak_bytes
from experiments.benchmarks.measure import interleaved, ratio
from experiments.benchmarks.optimisations import measure_optimisations, measure_parts
from experiments.benchmarks.peers import TimedProblem, forward_passes, methods, products
from experiments.benchmarks.plot import draw

HERE = Path(__file__).parent
FLOOR, EXACT, KEPT = (
    "floor: N F + N (F + VJP)",
    "exact gradient",
    "exact gradient, activations kept",
)
# What a CPU has time for on the large network, beside the floor and the exact gradients.
LARGE = ("plain backpropagation", "torch.utils.checkpoint", "published cost pattern")


def mini(steps: int, batch: int, device: torch.device) -> TimedProblem:
    """The embedded diffusion autoencoder at 64x64."""
    autoencoder = assets.autoencoder("diffae.safetensors", assets.profile("mini"))
    autoencoder.network.to(device)
    grid = TimeGrid.greedy_dim(autoencoder.schedule, steps)
    return TimedProblem(autoencoder.denoiser, grid, *_latents(batch, 64, 128, device))


def ffhq256(steps: int, batch: int, device: torch.device) -> TimedProblem:
    """The architecture of the paper's autoencoder with random weights."""
    with device:
        network = DiffAE(DiffAEConfig.ffhq256()).eval().requires_grad_(False)
    if device.type != "meta":
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)  # zero blocks give zero gradients
    schedule = DDPM()
    grid = TimeGrid.greedy_dim(schedule, steps)
    return TimedProblem(FromTimesteps(network, schedule), grid, *_latents(batch, 256, 512, device))


def _latents(batch: int, size: int, code: int, device: torch.device) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    shapes = (batch, 3, size, size), (batch, code), (batch, 3, size, size)
    return tuple(torch.randn(shape, device=device) for shape in shapes)


NETWORKS = {"mini": mini, "ffhq256": ffhq256}


def time_methods(
    problem: TimedProblem,
    device: torch.device,
    rounds: int,
    seconds: float,
    names: list[str] | None,
) -> dict[str, Any]:
    """Medians, and ratios to the floor and to the exact gradient, paired by round."""
    chosen = methods(problem.grid.steps)
    chosen = {k: v for k, v in chosen.items() if names is None or k in names}
    work = {name: (lambda m=method: m(problem)) for name, method in chosen.items()}
    if names is None:
        work["N F"] = lambda: forward_passes(problem)
        work["N (F + VJP)"] = lambda: products(problem)
    times = interleaved(work, rounds, seconds, device, warm=names is None)
    return {
        name: {
            "seconds": float(torch.tensor(values).median()),
            "rounds": len(values),
            "to floor": ratio(times, name, FLOOR),
            "to exact": ratio(times, name, EXACT),
            "to kept": ratio(times, name, KEPT),
            "all": values,
        }
        for name, values in times.items()
    }


def measure_memory(network: str, steps: int, batch: int, device: torch.device) -> dict[str, int]:
    """Peak of live bytes per method; of the large network on a CPU without computing anything.

    On `meta` every operation is a step in Python, so only methods that differ are asked there.
    """
    on_meta = network == "ffhq256" and device.type == "cpu"
    problem = NETWORKS[network](steps, batch, torch.device("meta") if on_meta else device)
    return {
        name: peak_bytes(lambda m=method: m(problem), device)
        for name, method in methods(steps).items()
        if (name in (EXACT, *LARGE) if on_meta else name != FLOOR)
    }


def resident_growth(name: str, steps: int, batch: int) -> int:
    """Bytes by which a fresh process's resident memory peaks in one gradient of `mini` (Linux).

    A cross-check of the counted bytes: it includes what kernels and the allocator hold besides.
    """
    code = (
        "import re, torch\nfrom experiments.benchmarks.peers import methods, forward_passes\n"
        "from experiments.benchmarks.run import mini\n"
        "def status(key): return int(re.search(key + r':\\s+(\\d+)', open('/proc/self/status')"
        ".read())[1])\n"
        f"p = mini({steps}, {batch}, torch.device('cpu')); forward_passes(p)\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"  # the peak starts afresh
        f"before = status('VmRSS'); methods({steps})[{name!r}](p)\n"
        "print(1024 * (status('VmHWM') - before))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=True)
    return int(done.stdout)


def printed(result: dict[str, Any]) -> str:
    """The tables of a result, in Markdown."""
    parts = []
    for name, block in result["networks"].items():
        memory = block["memory"]["bytes"]
        rows = []
        for method, found in block["times"].items():
            ratios = [
                f"{found[key]['median']:.3f} [{found[key]['low']:.3f}, {found[key]['high']:.3f}]"
                for key in ("to floor", "to exact")
            ]
            held = f"{memory[method] / 2**20:.0f}" if method in memory else "-"
            rows.append([method, f"{found['seconds']:.3f}", *ratios, held])
        for method, grown in block["memory"].get("resident", {}).items():
            parts.append(
                f"{name}, {method}: resident memory of a fresh process grew by "
                f"{grown / 2**20:.0f} MiB"
            )
        rounds = next(iter(block["times"].values()))["rounds"]
        held = block["memory"]
        parts.append(
            f"{name}: N = {block['steps']}, batch {block['batch']}, {rounds} rounds; memory at "
            f"N = {held['steps']}, batch {held['batch']}\n\n"
            + table(
                ["method", "s (median)", "to the floor [quartiles]", "to exact", "peak, MiB"], rows
            )
        )
    if result["optimisations"]:
        rows = [
            [
                row["name"],
                row["base"],
                f"{row['speedup']:.3f} [{row['low']:.3f}, {row['high']:.3f}]",
                row["parity"],
            ]
            for row in result["optimisations"]
        ]
        parts.append(table(["option", "against", "times faster [quartiles]", "agreement"], rows))
        rows = [[name, f"{1000 * seconds:.2f}"] for name, seconds in result["parts"].items()]
        parts.append(table(["part", "ms per image (median)"], rows))
    return "\n\n".join(parts)


def main() -> None:
    """Prints the tables and writes result.json and benchmarks.png."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=11.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=4, help="images of the mini network")
    parser.add_argument("--steps", type=int, default=20, help="N of the mini network")
    parser.add_argument("--memory-steps", type=int, default=20, help="N of the memory column")
    parser.add_argument("--large-steps", type=int, default=2, help="N of ffhq256")
    parser.add_argument("--compile", action="store_true", help="also torch.compile; minutes")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--name", default="", help="of the files; gpu writes gpu.json, gpu.png")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    result: dict[str, Any] = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "machine": torch.cuda.get_device_name(device) if cuda else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads(),
        "networks": {},
        "optimisations": [],
    }
    seconds = 60 * options.minutes
    for name in options.networks:
        small = name == "mini"
        steps = options.steps if small or cuda else options.large_steps
        batch = options.batch if small else 1
        # A CPU takes minutes for each gradient of the large network: fewer methods, no warm-up.
        names = None if small or cuda else [FLOOR, EXACT, KEPT, *LARGE]
        problem = NETWORKS[name](steps, batch, device)
        share = 0.3 if names is None else 0.25
        times = time_methods(problem, device, options.rounds, share * seconds, names)
        del problem
        memory = measure_memory(name, options.memory_steps, batch, device)
        result["networks"][name] = {
            "steps": steps,
            "batch": batch,
            "times": times,
            "memory": {"steps": options.memory_steps, "batch": batch, "bytes": memory},
        }
        if small and device.type == "cpu":
            result["networks"][name]["memory"]["resident"] = {
                method: resident_growth(method, options.memory_steps, batch)
                for method in (EXACT, LARGE[0])
            }
        print(f"measured {name}", flush=True)
    if "mini" in options.networks:
        problem = mini(max(1, options.steps // 2), options.batch, device)
        result["optimisations"] = measure_optimisations(
            problem, device, options.rounds, 0.15 * seconds, options.compile
        )
        result["parts"] = measure_parts(problem, device, options.rounds)
    print(printed(result))
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(result, options.out / f"{options.name or 'result'}.json")
    draw(result, options.out / f"{options.name or 'benchmarks'}.png")


if __name__ == "__main__":
    main()
