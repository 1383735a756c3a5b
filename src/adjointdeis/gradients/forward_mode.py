"""Forward mode: a few directional derivatives carried along with the sampling run."""

import weakref
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from adjointdeis.diffusion.prediction import wide
from adjointdeis.gradients.base import StepwiseMethod, refuse_count
from adjointdeis.gradients.chain import Chain, NotSupportedError
from adjointdeis.gradients.graphs import Aside, Mark, UnreachableLeafError
from adjointdeis.gradients.inputs import Inputs, refuse_rewritten
from adjointdeis.gradients.reachable import reachable, version
from adjointdeis.gradients.run import refuse_changed, taken

# What torch says where an operation, or a network that works around autograd, has no such mode.
_NO_FORWARD_MODE = ("forward AD", "functorch", "vmap", "jvp", "Batching", "data pointer")


@dataclass(frozen=True)
class ForwardMode(StepwiseMethod):
    r"""The exact gradient by a few Jacobian-vector products, with nothing stored on the way.

    Let :math:`v_1, \dots, v_K` be directions of the inputs that want a gradient: the unit vectors
    of z, one for each number in it, and those of x_T or the ``directions`` given. Each is carried
    along with the sampling run by the chain rule,
    :math:`T_k^{i+1} = \frac{\partial\Phi_i}{\partial x}\,T_k^i +
    \frac{\partial\Phi_i}{\partial z}\,\dot z_k`, so that the run ends with
    :math:`T_k = \frac{\partial x_0}{\partial v_k}`, and any loss has the derivatives
    :math:`\frac{\partial L}{\partial v_k} = \langle \frac{\partial L}{\partial x_0}, T_k\rangle`.

    Exact for any sampler, multistep ones and SDEs included, as every step is differentiated while
    it runs; nothing is evaluated again, so that counters, caches and random numbers of the
    network are no trouble.

    With ``directions`` of x_T, the gradient that x_T receives is the orthogonal projection of the
    exact one on their span. That is all that an x_T made of them needs:
    ``x_T = base + (c.view(-1, 1, 1, 1, 1) * directions).sum(0)`` gives c its exact gradient.

    Args:
        directions: K directions of x_T, shape (K, \*x_T.shape); None for all of its numbers.
        limit: largest K that is accepted, at least 1. Work and memory grow with K.

    Raises:
        ValueError: limit below 1; directions of another shape, or of an x_T that wants no gradient.
        NotSupportedError: more than ``limit`` numbers want a gradient; weights, the path's noise
            or complex numbers do; the network has an operation without forward-mode derivative,
            or writes into its own buffers (batch statistics in training mode).
        UnreachableLeafError: the denoiser captured a tensor that requires a gradient, or keeps one
            of an earlier run.

    When not to use: for more than a few numbers, where ``DiscreteAdjoint`` costs the same for all
    of them; for weights. Hooks on gradients, which belong to a backward pass, are not called.

    References:
        Gradients without backpropagation (forward mode), https://arxiv.org/abs/2202.08587
    """

    directions: Tensor | None = field(default=None, repr=False, compare=False)
    limit: int = 64
    # Nothing is evaluated again.
    check: bool = field(default=False, init=False, repr=False)
    theta: ClassVar[bool] = False
    trajectory: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    any_network: ClassVar[bool] = True
    memory: ClassVar[str] = "K latents"

    def __post_init__(self) -> None:
        refuse_count("ForwardMode.limit", self.limit, 1)

    def forward_pass(self, chain: Chain, by: Inputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        self._refuse_kept(chain)
        inputs, wanted = _inputs(by), self._counts(by)
        # Its nodes are made once, and inside they would be held with derivatives.
        assert chain.grid[0].index == 0
        tangents = self._tangents(inputs, wanted)
        # Not expanded ones, into which torch cannot write.
        primals = tuple(inputs[place].contiguous() for place in wanted)
        before, history, mark = chain.cost.nfe, 0, Mark()
        watch, aside = _Watch(), list[Tensor]()

        def run(*leaves: Tensor) -> tuple[Tensor, ...]:
            """x_0, then the other states and the data predictions if these are asked for."""
            nonlocal history
            values, states, predictions = list(inputs), [], []
            for place, leaf in zip(wanted, leaves, strict=True):
                values[place] = leaf
            inside = Inputs(chain, values, by.needs)
            x, state = inside.x_T, chain.initial_state(inside.x_T)
            for step in range(chain.steps):
                slot = chain.slot(step)
                z = inside.condition(slot)
                # A copy, which the network may change in place.
                x, *rest = taken(chain, step, x.clone(), z, state, None)
                refuse_rewritten(chain, z, slot, inside.z[slot])
                if chain.trajectory is not None:
                    states.append(x)
                    predictions.append(rest.pop(0))
                state, history = tuple(rest), max(history, len(rest))
                watch.forget()
            found = (x, *states[:-1], *predictions)
            aside.extend(watch.left({id(own) for own in (*found, *states, *state, *values)}))
            return found

        def carried(*directions: Tensor) -> Any:
            return torch.func.jvp(run, primals, directions)

        versions = [version(tensor) for tensor in inputs]
        # What is drawn on the way belongs to the run: it is the same for every direction.
        every: Any = torch.vmap(carried, out_dims=(None, 0), randomness="same")  # pyright: ignore
        try:
            with torch.enable_grad(), watch:
                outputs, record = every(*tangents)
        except (RuntimeError, ValueError) as error:
            if not any(sign in str(error) for sign in _NO_FORWARD_MODE):
                raise
            raise NotSupportedError(
                "ForwardMode cannot carry derivatives through this denoiser or sampler, which has "
                f"an operation without them ({str(error).splitlines()[0][:200]}): use "
                "gradient=DiscreteAdjoint() or Backprop()"
            ) from error
        _lead_to_aside(aside, by)
        refuse_changed(inputs[1:], versions[1:])
        by.leaf_check.look(outputs, inputs, inputs, mark)
        x_0, *way = (output.detach() for output in outputs)
        del outputs
        by.leaf_check.refuse("the denoiser")
        if chain.trajectory is not None:
            last = chain.steps - 1
            chain.trajectory.states = [*way[:last], x_0]
            chain.trajectory.predictions = way[last:]
        count = sum(wanted.values())
        chain.cost.vjps += count * (chain.cost.nfe - before)
        chain.cost.holds((1 + count) * (1 + history))
        return x_0, tuple(tangent.detach() for tangent in record)

    def backward_pass(
        self, chain: Chain, record: tuple[Tensor, ...], by: Inputs, x_0: Tensor, a_x: Tensor
    ) -> Tensor | None:
        del chain, x_0
        way, inputs = by.of_trajectory, _inputs(by)
        cotangents = [a_x] if way is None else [a_x, *way.states, *way.predictions]
        pairs = zip(record, cotangents, strict=True)
        products = torch.stack(
            [wide(t).flatten(1) @ wide(a).reshape(-1) for t, a in pairs if a is not None]
        ).sum(0)
        for place, count in self._counts(by).items():
            own, products = products[:count], products[count:]
            if place == 0 and self.directions is not None:
                # The combination of the directions that has these products with them.
                own = torch.linalg.pinv(wide(self.directions.to(inputs[0])).flatten(1)) @ own
            by.sums.add(place, own.view_as(inputs[place]).to(inputs[place]))
        return by.sums.values[0]

    def _counts(self, by: Inputs) -> dict[int, int]:
        """How many directions each input has that wants a gradient, by its place."""
        counts, given = {}, self.directions
        for place, tensor in enumerate(_inputs(by)):
            if by.needs[place]:
                counts[place] = len(given) if place == 0 and given is not None else tensor.numel()
                if tensor.is_complex():
                    raise NotSupportedError(
                        "ForwardMode has no directions for complex numbers: use "
                        "gradient=DiscreteAdjoint()"
                    )
        if given is not None and (0 not in counts or given.shape[1:] != by.x_T.shape):
            raise ValueError(
                "ForwardMode takes K directions of an x_T that requires a gradient, in a tensor "
                f"of shape (K, *x_T.shape): directions have shape {tuple(given.shape)}, x_T has "
                f"{tuple(by.x_T.shape)} and requires_grad={0 in counts}"
            )
        total = sum(counts.values())
        if total > self.limit:
            of_x = counts.get(0, 0)
            raise NotSupportedError(
                f"ForwardMode carries a product for each number that wants a gradient, {of_x} of "
                f"x_T and {total - of_x} of z, and its limit is {self.limit}: use "
                "gradient=DiscreteAdjoint(), which costs the same for all of them; or "
                "ForwardMode(directions=...) with a few directions of x_T, sample(..., "
                f"microbatch=1) where each sample has a z of its own, ForwardMode(limit={total})"
            )
        return counts

    def _refuse_kept(self, chain: Chain) -> None:
        """Refuse hooks of a backward pass, and a value that is kept from an earlier run."""
        for _, value in reachable(chain.denoiser.denoiser, chain.solver):
            if isinstance(value, nn.Module) and (
                value._backward_hooks or value._backward_pre_hooks
            ):
                raise NotSupportedError(
                    f"{type(value).__name__} has a hook that changes its gradient, which "
                    "ForwardMode does not call: remove it, or use gradient=DiscreteAdjoint()"
                )
            if isinstance(value, Tensor) and (_is_wrapped(value) or Aside.leads(value)):
                raise UnreachableLeafError(
                    f"the denoiser keeps a tensor of shape {tuple(value.shape)} from an earlier "
                    "run of ForwardMode, and its derivatives ended with that run: clear its cache "
                    "before each run, or use gradient=Backprop()"
                )

    def _tangents(self, inputs: list[Tensor], counts: dict[int, int]) -> list[Tensor]:
        """What each of these inputs changes by along each of the K directions, shape (K, *)."""
        found, first, total = [], 0, sum(counts.values())
        for place, count in counts.items():
            tangent = inputs[place].new_zeros(total, *inputs[place].shape)
            own = tangent[first : first + count]
            if place == 0 and self.directions is not None:
                own.copy_(self.directions)
            else:
                own.view(count, count).fill_diagonal_(1.0)
            found.append(tangent)
            first += count
        return found


class _Watch(TorchFunctionMode):
    """Sees every operation of a run, and which results are held after it.

    It also lets ``torch.no_grad()`` inside a network cut tangents, as it cuts the graph of
    autograd. Torch itself carries them on there, and would differentiate another function than
    autograd does.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: list[weakref.ref[Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if func is torch._C._set_grad_enabled:
            torch._C._set_fwd_grad_enabled(*args)
        found = func(*args, **(kwargs or {}))
        several = found if isinstance(found, (tuple, list)) else (found,)
        self._made += [weakref.ref(value) for value in several if isinstance(value, Tensor)]
        return found

    def forget(self) -> None:
        """Drop what nobody holds any more."""
        self._made = [ref for ref in self._made if ref() is not None]

    def left(self, known: set[int]) -> list[Tensor]:
        """What is held and has tangents, but for the known ones, by ``id``."""
        held = {id(value): value for ref in self._made if (value := ref()) is not None}
        self._made.clear()  # what is referred to weakly cannot be exchanged
        return [
            value
            for place, value in held.items()
            if place not in known and forward_ad.unpack_dual(value).tangent is not None
        ]


def _lead_to_aside(held: list[Tensor], by: Inputs) -> None:
    """Make a loss that uses what a step laid aside, without tangents now, come by :class:`Aside`.

    Raises:
        UnreachableLeafError: torch itself holds one of them, so that this cannot be done.
    """
    while held:
        value = held.pop()
        plain = value
        while _is_wrapped(plain):
            plain = _functorch.get_unwrapped(plain)
        with torch.enable_grad():
            (marked,) = by.entrances([plain.detach()], [True])
        try:
            torch.utils.swap_tensors(value, marked)
        except RuntimeError as error:
            raise UnreachableLeafError(
                f"the denoiser lays aside a tensor of shape {tuple(marked.shape)} of which the "
                "derivatives end with the run of ForwardMode: detach() what is only looked at, or "
                "use gradient=Backprop()"
            ) from error


_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
_is_wrapped = _functorch.is_functorch_wrapped_tensor


def _inputs(by: Inputs) -> list[Tensor]:
    """x_T and the leaves of z, in the order of ``by.needs``."""
    return [by.x_T, *(leaf for leaves in by.z for leaf in leaves)]
