"""A diffusers scheduler as the sampler: its own ``step``, its history carried as explicit state.

A scheduler keeps earlier predictions and counters in its attributes, so that calling ``step``
twice gives two results. Here every step starts from a copy of the scheduler whose attributes are
put back to what they were before that step: the tensors among them come from the solver's state,
which a gradient method stores and differentiates, the counters from a table of step numbers.
"""

import copy
import inspect
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from adjointdeis.diffusion.grid import Node, TimeGrid
from adjointdeis.diffusion.prediction import x0_from_eps, x0_from_flow, x0_from_v
from adjointdeis.diffusion.step_grid import StepNode


class SchedulerSolver:
    """Steps of a scheduler. Exact for every gradient method that takes any network.

    The state of a step is every tensor that the scheduler holds after it: earlier predictions,
    the sample that a two-stage step came from. A stochastic scheduler draws step i from
    :meth:`generator` of that step, so that a repeated step repeats its noise.

    Args:
        scheduler: after ``set_timesteps``; never changed.
        arguments: given to every ``scheduler.step``.
        seed: of the generators.
        predicts: what the scheduler asks of the network, for messages.
        rounded: whether the latents are brought back to their dtype after every step.

    Raises:
        ValueError: the scheduler holds something that cannot be carried from step to step.

    When not to use: with gradient methods that evaluate the network themselves, such as
    ``AdjointDEIS``; they refuse it. Give them a solver of this package.

    References:
        Diffusers schedulers, https://huggingface.co/docs/diffusers/api/schedulers/overview
    """

    calculus: ClassVar[Literal["ode", "sde"]] = "ode"
    multistep: ClassVar[bool] = True

    def __init__(
        self,
        scheduler: Any,
        arguments: dict[str, Any],
        seed: int,
        predicts: str,
        rounded: bool = False,
    ) -> None:
        self.rounded = rounded
        self.scheduler, self.arguments, self.seed = scheduler, arguments, seed
        self.name = type(scheduler).__name__
        self.kind, self.predicts = predicts, f"{predicts} for {self.name}.step"
        self._names = inspect.signature(scheduler.step).parameters
        self._parts = False
        self._begins: list[tuple[weakref.ref, int]] = []
        # What the scheduler holds beside tensors, by (first step of the run, steps taken).
        self._attributes: dict[tuple[int, int], dict[str, Any]] = {}
        # Noise paths that a scheduler makes by itself, by attribute and kind of latent.
        self._paths: dict[tuple, Any] = {}
        self._constants = [v for v in vars(scheduler).values() if isinstance(v, Tensor)]
        self._storages = {_storage(v) for v in self._constants} - {0}
        if hasattr(scheduler, "noise_sampler_seed") and scheduler.noise_sampler_seed is None:
            scheduler.noise_sampler_seed = self.generator(0).initial_seed()

    def __repr__(self) -> str:
        return f"SchedulerSolver({self.name})"

    @property
    def steps(self) -> int:
        """How often a whole run calls ``scheduler.step``."""
        # Wuerstchen's list of times ends with the clean one, to which the last step goes.
        return len(self.scheduler.timesteps) - (self.name in _TIMES_A_BATCH)

    def generator(self, step: int) -> torch.Generator:
        """The source of the noise of a step of the whole run, at its beginning."""
        return torch.Generator().manual_seed((self.seed * 0x9E3779B1 + step) % 2**32)

    def in_parts(self) -> "SchedulerSolver":
        """This solver for parts of a batch, which refuses to give all of them the same noise."""
        copied = copy.copy(self)
        copied._parts = True
        return copied

    def _has_drawn(self, generator: torch.Generator | None, step: int) -> bool:
        if generator is None:
            return False
        return not torch.equal(generator.get_state(), self.generator(step).get_state())

    def initial_state(self, x_T: Tensor, grid: TimeGrid) -> tuple[Tensor, ...]:
        """A scheduler starts without history.

        Raises:
            ValueError: x_T was made for another first step (``Sampler.initial``).
        """
        begin, storage = self._number(grid[0]), _storage(x_T)
        self._begins = [entry for entry in self._begins if entry[0]() is not None]
        for reference, first in self._begins:
            made = reference()
            same = made is not None and storage and _storage(made) == storage
            if same and first != begin:
                raise ValueError(
                    f"x_T was made to start at step {first}, and the grid starts at step {begin}: "
                    "sampler.grid begins where the last sampler.initial(...) put it. Call initial "
                    "again, or make a second sampler"
                )
        return ()

    def starts(self, x_T: Tensor, first: int) -> None:
        """Remember for which step a tensor was made, as long as it lives."""
        self._begins.append((weakref.ref(x_T), first))

    def step(
        self,
        denoiser: Any,
        x: Tensor,
        z: Any,
        s: Node,
        t: Node,
        state: tuple[Tensor, ...],
        noise: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One evaluation of the network and one ``scheduler.step``, as in a pipeline's loop."""
        del noise, t
        begin, number = self._number(s.grid[0]), self._number(s)
        scheduler = self._before(begin, number, x, state)
        timestep = scheduler.timesteps[number]
        scale = getattr(scheduler, "scale_model_input", None)
        prediction = denoiser(x if scale is None else scale(x, timestep), s.t, z)
        supplied = self._supplied(begin, number, scheduler)
        watched = [*state, *self._constants]
        versions = [tensor._version for tensor in watched]
        # In the dtype of the latents, as the pipelines have it: in half precision it matters.
        batched = self.name in _TIMES_A_BATCH
        out = scheduler.step(
            model_output=prediction,
            timestep=timestep.expand(x.shape[0]).to(x.dtype) if batched else timestep,
            sample=x,
            **supplied,
            **self.arguments,
        )
        drawn = supplied.get("generator")
        if self._parts and self._has_drawn(drawn, number):
            raise ValueError(
                f"{self.name} adds noise, and every part of a batch would get that of the first: "
                "sample the whole batch at once, without microbatch"
            )
        if [tensor._version for tensor in watched] != versions:
            raise ValueError(
                f"{self.name}.step writes into tensors that earlier steps made, so that a step "
                "cannot be repeated. Use Backprop() through your own loop, or another scheduler"
            )
        out = tuple(out.values()) if isinstance(out, dict) else tuple(out)
        if _OLD_PREDICTION in self._names:
            setattr(scheduler, _OLD_PREDICTION, out[1])
        x_next = out[0].to(x.dtype) if self.rounded else out[0]
        return x_next, self._after(begin, number, x, scheduler)

    def data_prediction(self, x: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """What the network says of the data at a step, before the scheduler clips anything.

        Args:
            x: what the network was given: the latents, scaled to keep their variance.
            t: time of the step's node.
            output: what the network answered.

        Raises:
            ValueError: a scheduler whose noise levels are not those of a VP process or a flow.
        """
        scheduler, number = self.scheduler, round((1.0 - float(t)) * self.steps)
        sigmas: Any = getattr(scheduler, "sigmas", None)
        product: Any = getattr(scheduler, "alphas_cumprod", None)
        convert = _DATA_FROM.get(self.kind)
        known = product is not None or self.kind == "velocity"
        if convert is None or not known or hasattr(scheduler, "sigmas_interpol"):
            raise ValueError(
                f"the noise levels of {self.name} are its own, and what its network says of the "
                "data is not known: sample without trajectory=True"
            )
        if self.kind == "velocity":
            sigma = float(sigmas[number])
            return convert(x, output, 1.0 - sigma, sigma)
        if product is None or sigmas is not None:
            alpha = (1.0 + float(sigmas[number]) ** 2) ** -0.5
        else:
            alpha = float(product[int(scheduler.timesteps[number])]) ** 0.5
        return convert(x, output, alpha, (1.0 - alpha**2) ** 0.5)

    def _number(self, node: Node) -> int:
        """The number of a node in the whole run."""
        total = getattr(node.grid, "total", None)
        if not isinstance(node, StepNode) or total != self.steps:
            raise ValueError(
                f"{self!r} takes the {self.steps} steps of its own sampler and no others: pass "
                "grid=sampler.grid of the same from_diffusers(...).sampler(...)"
            )
        return node.number

    def _supplied(self, begin: int, number: int, scheduler: Any) -> dict[str, Any]:
        """What a loop gives to ``step`` beside the prediction, the time and the sample."""
        times = self.scheduler.timesteps
        supplied = {
            "generator": self.generator(number),
            "return_dict": False,
            _OLD_PREDICTION: getattr(scheduler, _OLD_PREDICTION, None),
            "timestep_back": times[number - 1] if number > begin else None,
            "prev_timestep": times[number + 1] if number + 1 < len(times) else None,
        }
        return {
            key: value
            for key, value in supplied.items()
            if key in self._names and key not in self.arguments
        }

    def _before(self, begin: int, number: int, x: Tensor, state: Sequence[Tensor]) -> Any:
        """The scheduler as it is before a step."""
        scheduler = copy.copy(self.scheduler)
        for name, value in vars(self.scheduler).items():
            if isinstance(value, list):
                setattr(scheduler, name, list(value))
        if number == begin:
            if begin > 0 and hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(begin)
            return scheduler
        if (begin, number) not in self._attributes:
            raise ValueError(
                f"step {number} of {self.name} needs the history of the steps since {begin}; "
                "start the grid where the run starts"
            )
        held = iter(state)
        for name, value in self._attributes[begin, number].items():
            if value is _HELD:
                # A copy: PNDM's Runge-Kutta steps add to the sum of predictions in place.
                value = next(held).clone()
            elif value is _PATH:
                value = self._paths[name, x.shape, x.dtype, x.device]
            elif isinstance(value, list):
                value = [next(held) if entry is _HELD else entry for entry in value]
            setattr(scheduler, name, value)
        return scheduler

    def _after(self, begin: int, number: int, x: Tensor, scheduler: Any) -> tuple[Tensor, ...]:
        """The tensors that a scheduler holds now; what else it holds goes into the table."""
        held: list[Tensor] = []
        attributes: dict[str, Any] = {}
        clean = vars(self.scheduler)
        for name, value in vars(scheduler).items():
            if name in clean and _same(value, clean[name]):
                continue
            if isinstance(value, list):
                attributes[name] = [self._kept(name, entry, x, held) for entry in value]
            else:
                attributes[name] = self._kept(name, value, x, held)
        known = self._attributes.setdefault((begin, number + 1), attributes)
        if not _same(sorted(known), sorted(attributes)) or any(
            not _same(value, known[name]) for name, value in attributes.items()
        ):
            raise ValueError(
                f"after step {number} {self.name} holds something else than in an earlier run: its "
                "steps depend on more than their inputs and cannot be repeated"
            )
        return tuple(held)

    def _kept(self, name: str, value: Any, x: Tensor, held: list[Tensor]) -> Any:
        if isinstance(value, Tensor):
            if _storage(value) in self._storages:
                return _plain(value)  # a timestep or a noise level of the scheduler itself
            held.append(value)
            return _HELD
        if type(value).__name__ == "BrownianTreeNoiseSampler":
            # Determined by its seed: one path serves every run on latents of this kind.
            self._paths.setdefault((name, x.shape, x.dtype, x.device), value)
            return _PATH
        if isinstance(value, _PLAIN) or hasattr(value, "dtype"):
            return value
        raise ValueError(
            f"{self.name} keeps a {type(value).__name__} in its attribute {name!r} from step to "
            "step, which cannot be carried as a tensor. Use another scheduler"
        )


_DATA_FROM = {
    "epsilon": x0_from_eps,
    "v_prediction": x0_from_v,
    "sample": lambda x, output, alpha, sigma: output,
    "velocity": x0_from_flow,
}
_OLD_PREDICTION = "old_pred_original_sample"
_HELD, _PATH = "a tensor of the state", "a noise path"
_PLAIN = (bool, int, float, complex, str, tuple, dict, type(None), torch.dtype, torch.device)
_TIMES_A_BATCH = ("DDPMWuerstchenScheduler",)


def _plain(tensor: Tensor) -> Tensor:
    """A tensor without what forward mode wraps it in, which has no memory of its own."""
    torch_c: Any = torch._C
    while torch_c._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch_c._functorch.get_unwrapped(tensor)
    return tensor


def _storage(tensor: Tensor) -> int:
    return _plain(tensor).untyped_storage().data_ptr()


def _same(a: Any, b: Any) -> bool:
    """Whether two attributes hold the same, tensors and arrays by their entries."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if hasattr(a, "shape"):
        return a.shape == b.shape and bool((a == b).all())
    return bool(a == b)
