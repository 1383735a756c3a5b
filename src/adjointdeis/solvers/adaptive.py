"""Steps by tolerance: those that the embedded pair of a Runge-Kutta method accepts."""

import math
from typing import Any

import torch
from torch import Tensor

from adjointdeis.diffusion.denoiser import Denoiser
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.solvers.runge_kutta import RungeKutta

SAFETY, SMALLEST, LARGEST = 0.9, 0.2, 5.0  # of the factor from one width to the next
# In log-SNR. At high noise the data prediction hardly changes, and the stages of a wider step,
# which lie at its clean end, would miss all that happens between.
LEAST_WIDTH, MOST_WIDTH = 1e-6, 1.5
MOST_STEPS = 10_000


class ToleranceError(ValueError):
    """A tolerance that no step of a sampler meets."""


def accepted_steps(
    denoiser: Denoiser,
    x: Tensor,
    z: Any,
    *,
    solver: RungeKutta,
    grid: TimeGrid,
    rtol: float,
    atol: float,
) -> tuple[list[Tensor], list[Tensor], int]:
    r"""Times of the accepted nodes, x at each of them, and how many steps were rejected.

    Let e be the difference between the two results of a step. It is accepted if, for every sample,
    the root mean square of :math:`e / (\mathrm{atol} + \mathrm{rtol} \max(|x_s|, |x_t|))` is at
    most 1. The next log-SNR width is the last one times :math:`0.9\,\mathrm{rms}^{-1/p}`, p being
    the order; that factor lies between 1/5 and 5, and the width is at most 1.5.

    Args:
        denoiser, x, z: as for a step; nothing here is differentiated.
        solver: with an embedded pair.
        grid: its ends, and the width that is tried first.
        rtol, atol: as above.

    Raises:
        ToleranceError: rounding is larger; a step of 1e-6 in log-SNR is still rejected; or 10,000
            steps were not enough.

    References:
        Solving ordinary differential equations I (Hairer, Norsett, Wanner), II.4,
        https://doi.org/10.1007/978-3-540-78862-1
    """
    if rtol + atol < 10.0 * torch.finfo(x.dtype).eps:
        raise ToleranceError(f"rtol={rtol:g} and atol={atol:g} are below the rounding of {x.dtype}")
    table, end = solver.tableau, grid[-1]
    difference = [
        high - low for high, low in zip((*table.b, 0.0), (*table.embedded, 0.0), strict=False)
    ]
    times, states, rejected, width = [grid.t[0]], [x], 0, float(grid.h[0])
    # The slope at the end of an accepted step is the first stage of the next one.
    known: list[Tensor] = []
    while float(times[-1]) != float(end.t):
        here = float(grid.schedule.lmbda(times[-1]))
        rest = end.lmbda - here
        width = min(width, MOST_WIDTH)
        # No short last step: what is left is taken at once, or in two halves.
        width = rest if width >= 0.99 * rest else min(width, max(0.5 * rest, 0.5 * width))
        place = torch.tensor(here + width, dtype=torch.float64)
        time = end.t if width == rest else grid.schedule.t_of(place)
        s, t = TimeGrid.from_times(grid.schedule, torch.stack((times[-1], time)))
        slopes = solver.stages(denoiser, x, z, s, t, known)
        arrived = solver.moved(x, s, t, table.b, slopes)
        ended = []
        if len(table.embedded) > table.stages:
            ended = [solver.variables(s, t).slope(denoiser, arrived, t, z)]
        error = solver.moved(
            torch.zeros_like(x), s, t, difference[: len(slopes) + len(ended)], [*slopes, *ended]
        )
        scale = atol + rtol * torch.maximum(x.abs(), arrived.abs())
        size = float((error / scale).flatten(1).square().mean(1).amax().sqrt())
        factor = SAFETY * size ** (-1.0 / table.order) if size > 0.0 else LARGEST
        if size <= 1.0:
            times.append(time)
            x, known = arrived, ended
            states.append(x)
        else:
            rejected, known = rejected + 1, slopes[:1]
            # An error that is no number has no size.
            factor = min(factor, 1.0) if math.isfinite(size) else SMALLEST
        if width < LEAST_WIDTH < rest or len(times) > MOST_STEPS:
            raise ToleranceError(
                f"{solver} cannot step on from t = {float(s.t):.4g} with rtol={rtol:g} and "
                f"atol={atol:g}: step {len(times)}, of {width:.1g} in log-SNR, is off by "
                f"{size:.2g} tolerances. Rounding in {x.dtype} may be larger than they are, or the "
                "network may not be a function of x and t"
            )
        width *= min(LARGEST, max(SMALLEST, factor))
    return times, states, rejected
