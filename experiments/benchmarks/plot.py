"""Bars of seconds over the floor, and of peak memory, per method."""

from pathlib import Path
from typing import Any

import numpy as np

from adjointdeis.reporting.style import QUIET, figure, look

SHOWN = (
    "exact gradient",
    "exact gradient, activations kept",
    "AdjointDEIS-1",
    "plain backpropagation",
    "torch.utils.checkpoint",
    "published cost pattern",
    "torchdiffeq odeint_adjoint",
    "torchsde sdeint_adjoint",
)


def draw(result: dict[str, Any], path: Path) -> None:
    """Writes one row of two panels per network."""
    blocks = result["networks"]
    with figure(9.2, 2.6 * len(blocks), rows=len(blocks), columns=2, squeeze=False) as (made, axes):
        for row, (network, block) in zip(axes, blocks.items(), strict=True):
            times, memory = block["times"], block["memory"]["bytes"]
            names = [name for name in SHOWN if name in times or name in memory]
            places = np.arange(len(names))[::-1]
            for place, name in zip(places, names, strict=True):
                colour = look(0 if name.startswith("exact") else 7).colour
                if name in times:
                    ratio = times[name]["to floor"]
                    row[0].barh(place, ratio["median"], color=colour, height=0.6)
                    row[0].plot([ratio["low"], ratio["high"]], [place, place], color="k", lw=1)
                    row[0].annotate(f" {ratio['median']:.2f}", (ratio["high"], place), va="center")
                if name in memory:
                    row[1].barh(place, memory[name] / 2**20, color=colour, height=0.6)
                    row[1].annotate(
                        f" {memory[name] / 2**20:.0f}", (memory[name] / 2**20, place), va="center"
                    )
            row[0].axvline(1.0, color=QUIET, lw=0.8)
            row[0].set_yticks(places, names)
            row[1].set_yticks(places, [""] * len(names))
            held = block["memory"]
            row[0].set_xlabel(f"{network}, N = {block['steps']}: time over the floor")
            row[1].set_xlabel(f"{network}, N = {held['steps']}: peak memory, MiB")
            for axis in row:
                axis.set_xlim(0, axis.get_xlim()[1] * 1.15)
        made.savefig(path, dpi=160)
