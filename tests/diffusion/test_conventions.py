"""Each model class against the loop of its own pipeline, run with gradients on tiny networks."""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import relative_error
from tiny_diffusers import CASES, Case, normal
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from adjointdeis import sample
from adjointdeis.diffusion import from_diffusers
from adjointdeis.diffusion.conventions import CONVENTIONS, UnknownModelError
from adjointdeis.gradients import DiscreteAdjoint

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")  # the pipelines of diffusers import it
pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 3


class AfterLastStep(Exception):
    """Leaves a pipeline before it asks for an image decoder."""


class Loop:
    """A pipeline's own denoising loop, run with gradients, and what it was seen to call.

    Attributes:
        called: arguments of the model's first call.
        setting: arguments of ``set_timesteps``.
        first, last: the latents before the first and after the last step.
    """

    def __init__(self, case: Case, model: nn.Module, arguments: dict[str, Any]) -> None:
        self.called: dict[str, Any] = {}
        self.setting: dict[str, Any] = {}
        self.first: Any = None
        self.last: Any = None
        self.steps = 0
        scheduler = case.made_scheduler()
        pipe = case.made_pipeline(model, scheduler)
        self._scheduler = scheduler
        self._watch(model, "forward", lambda given, out: self.called or self.called.update(given))
        self._watch(scheduler, "set_timesteps", lambda given, out: self.setting.update(given))
        self._watch(scheduler, "step", self._stepped)
        pipe.set_progress_bar_config(disable=True)
        call = type(pipe).__call__
        while hasattr(call, "__wrapped__"):  # without its no_grad
            call = call.__wrapped__
        try:
            with contextlib.suppress(AfterLastStep):
                call(pipe, num_inference_steps=STEPS, output_type="latent", **arguments)
        finally:
            del model.forward

    def _watch(self, owner: Any, name: str, note: Callable) -> None:
        method = getattr(owner, name)
        names = list(inspect.signature(method).parameters)

        @functools.wraps(method)
        def watched(*values: Any, **called: Any) -> Any:
            called = dict(zip(names, values, strict=False)) | called
            out = method(**called)
            note(called, out)
            return out

        setattr(owner, name, watched)

    def _stepped(self, given: dict[str, Any], out: Any) -> None:
        if self.first is None:
            self.first = given["sample"]
        self.last = out[0] if isinstance(out, tuple) else out.prev_sample
        self.steps += 1
        if self.steps == len(self._scheduler.timesteps):
            raise AfterLastStep


def loss(x_0: Tensor) -> Tensor:
    return (1 + x_0.double() ** 2).sqrt().sum()


def leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


def compared(case: Case, dtype: torch.dtype, **said: Any) -> tuple[list[float], list[float]]:
    """Relative errors of x_0, x_T, z, theta; and norms of the last three."""
    model, arguments = case.network(dtype), case.arguments(dtype)
    loop = Loop(case, model, arguments)
    network = from_diffusers(model, case.made_scheduler()).network
    key = network.prompt
    prompt = loop.called[key]
    listed = isinstance(prompt, list)  # Z-Image: a list of samples
    prompt = prompt[0] if listed else prompt
    bound = {
        name: value
        for name, value in loop.called.items()
        if name not in (network.latents, network.clock, "return_dict", key)
    }
    bound = tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, bound)
    weight = next(p for n, p in model.named_parameters() if n.endswith("weight"))
    noise = arguments["latents"]
    noise = noise if noise.shape == loop.first.shape else loop.first
    theirs = torch.autograd.grad(loss(loop.last), (noise, prompt, weight))
    setting = {k: v for k, v in loop.setting.items() if k not in ("num_inference_steps", "device")}
    steps = None if setting.get("sigmas") is not None else STEPS
    x_T, z = leaf(loop.first), leaf(prompt)
    sampler = from_diffusers(model, case.made_scheduler(), **said, **bound).sampler(
        steps, **setting
    )
    x_0 = sample(
        sampler.denoiser, x_T, z[None] if listed else z, solver=sampler.solver, grid=sampler.grid,
        gradient=DiscreteAdjoint(),
    ).x_0  # fmt: skip
    ours = torch.autograd.grad(loss(x_0), (x_T, z, weight))
    errors = [relative_error(x_0, loop.last)]
    errors += [relative_error(a, b) for a, b in zip(ours, theirs, strict=True)]
    return errors, [float(gradient.norm()) for gradient in theirs]


@pytest.mark.parametrize("which", CASES)
def test_a_model_is_called_as_its_pipeline_calls_it(which: str) -> None:
    case = CASES[which]
    errors, norms = compared(case, torch.float64)
    assert min(norms) > 0
    assert max(errors) < case.tolerance, errors
    # The comparison sees a wrong time and a wrong sign.
    convention = CONVENTIONS[case.model]
    wrong = {
        "time": {"time": lambda t: 0.5 * t + 0.1, "output": convention.output},
        "sign": {"output": "as is" if convention.output == "negated" else "negated"},
    }
    for said in wrong.values():
        errors, _ = compared(case, torch.float64, **said)
        assert errors[0] > 1e-5, said


@pytest.mark.parametrize("which", [name for name, case in CASES.items() if case.bfloat16])
def test_in_bfloat16_it_is_as_wrong_as_the_pipeline(which: str) -> None:
    errors, norms = compared(CASES[which], torch.bfloat16)
    assert min(norms) > 0
    # One step is pulled back at a time and sums are rounded in another order: a bfloat16 ulp.
    assert errors[0] == 0.0 and max(errors) < 2**-7, errors


def test_an_unknown_class_is_refused_and_the_call_is_shown() -> None:
    class Mine(nn.Module):
        def forward(self, hidden_states, timestep, encoder_hidden_states=None):
            return (hidden_states * timestep.reshape(-1, 1),)

    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(UnknownModelError, match=r"Mine is no model.*time='timestep', output="):
        from_diffusers(Mine(), scheduler)
    with pytest.raises(UnknownModelError, match="say both"):
        from_diffusers(Mine(), scheduler, time="timestep")
    with pytest.raises(ValueError, match="time='seconds' is unknown; say one of 'timestep'"):
        from_diffusers(Mine(), scheduler, time="seconds", output="as is")
    x = normal(2, 3, seed=1)
    for time, output, wanted in (
        ("timestep / 1000", "negated", -0.5 * x),
        (lambda t: 2 * t, lambda out: 3 * out, 3000 * x),
    ):
        network = from_diffusers(Mine(), scheduler, time=time, output=output).network
        assert torch.allclose(network(x, torch.tensor(500.0), None), wanted)

    class Known(diffusers.FluxTransformer2DModel):
        """A class of the table's, specialised."""

    assert CASES["flux"].config["in_channels"] == 4
    network = from_diffusers(Known(**CASES["flux"].config), scheduler).network
    assert network.convention == CONVENTIONS["FluxTransformer2DModel"]


def test_another_number_of_training_timesteps_is_not_ignored() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=500)
    model = CASES["lumina 2"].network(torch.float64)
    with pytest.raises(ValueError, match="divides the timestep by the scheduler's num_train_times"):
        from_diffusers(model, scheduler)
    said = from_diffusers(model, scheduler, time=lambda t: 1 - t / 500)
    assert said.network.convention.output == "negated"
    from_diffusers(CASES["flux"].network(torch.float64), scheduler)  # 1000, whatever the scheduler


def test_every_class_of_the_table_exists() -> None:
    pipelines = {"AudioLDM2UNet2DConditionModel"}
    missing = [n for n in CONVENTIONS if n not in pipelines and not hasattr(diffusers, n)]
    assert set(missing) <= {"I2VGenXLUNet", "UNetSpatioTemporalConditionModel"}, missing
