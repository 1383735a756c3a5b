"""Whether the samples of a batch are independent, so that the batch may be taken in parts."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from adjointdeis.diffusion.classifier_free import of_rows
from adjointdeis.diffusion.conditions import PerStep, divided
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.prediction import wide
from adjointdeis.gradients.cost import Cost, CountedDenoiser
from adjointdeis.gradients.step_context import ContextRecorder

_WHOLE = (
    "a part of {} samples came out as {}: the denoiser holds a tensor of the whole batch of {}; "
    "pass it in z, which is divided (a tensor, tuple or dict: other objects are not looked into). "
    "Or it keeps one of other samples: switch that cache off, or leave out microbatch"
)


class CoupledSamplesError(ValueError):
    """A network of which one sample's output depends on the others of its batch."""


def check_independent(
    denoiser: Callable[..., Tensor], x: Tensor, z: Any, grid: TimeGrid, size: int, cost: Cost
) -> None:
    """Refuse to divide a batch whose samples depend on each other.

    Layers that are known to couple samples are named. Otherwise the first sample is evaluated twice
    at the last step's time: beside the last sample, and then in its own part, where a value that
    was kept from the other evaluation shows. Random states and buffers are left as they were.

    Args:
        denoiser, x, z, grid, cost: as in ``sample``; both evaluations are counted.
        size: how many samples a part has, below the batch.

    Raises:
        CoupledSamplesError: naming the layer, or what else it may be.
    """
    recorder = ContextRecorder((denoiser,), x)
    for module in recorder.modules:
        if _couples(module):
            raise CoupledSamplesError(
                f"{type(module).__name__} in training mode, or without running statistics, makes "
                "the samples of a batch depend on each other, so that microbatch would change the "
                "result: call eval() on the network before sample(..., microbatch=...), or leave "
                "out microbatch"
            )
    step, batch = grid.steps - 1, x.shape[0]
    z = z.values[step] if isinstance(z, PerStep) else z
    states = [source.get() for source in recorder.sources]
    buffers = [(owner, name, owner[name]) for owner, name in recorder.places]
    found = []
    try:
        # With gradients as the run has them: what is kept from here has no other graph.
        for rows in ([batch - 1, 0], slice(0, size)):
            for owner, name, value in buffers:
                owner[name] = value.clone()
            counted = CountedDenoiser(of_rows(denoiser, None, batch, rows)[0], cost)
            # At the only node of one step alpha may be 0, where eps says nothing.
            predict = counted.data if step == 0 and hasattr(denoiser, "data") else counted
            out = predict(x[rows].detach().clone(), grid[step].t, divided(z, batch, rows))
            if out.shape[0] != x[rows].shape[0]:
                raise CoupledSamplesError(_WHOLE.format(x[rows].shape[0], tuple(out.shape), batch))
            found.append(wide(out[0 if isinstance(rows, slice) else 1].detach()))
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        if "memory" in text or not ("size" in text.lower() or "shape" in text):
            raise
        raise CoupledSamplesError(
            _WHOLE.format(len(x[rows]), f"an error ({text})", batch)
        ) from error
    finally:
        for owner, name, value in buffers:
            owner[name] = value
        for source, state in zip(recorder.sources, states, strict=True):
            source.set(state)
    one, other = found
    off, length = float((one - other).norm()), float(max(one.norm(), other.norm()))
    if off > recorder.tolerance * length:
        raise CoupledSamplesError(
            f"the network gives the first of {batch} samples another output beside other samples, "
            f"off by {off / length:.2g} of its length, so that microbatch would change the result. "
            "It may be dropout or noise drawn inside it (call eval()), a statistic of the batch, "
            f"or a tensor in z that belongs to all samples and happens to be {batch} long (pass "
            "tensor[None]). Otherwise leave out microbatch"
        )


def _couples(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return module.training and module.track_running_stats
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.training or module.running_mean is None
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0
