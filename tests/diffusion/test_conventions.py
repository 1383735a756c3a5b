"""Each model class against the loop of its own pipeline, run with gradients on tiny networks."""

import ast
import contextlib
import dataclasses
import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracles import relative_error
from tiny_diffusers import CASES as PLAIN, UNET, Case, normal
from tiny_pipelines import MORE
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from adjointdeis import sample
from adjointdeis.diffusion import Guidance, from_diffusers
from adjointdeis.diffusion.conditions import PerStep
from adjointdeis.diffusion.conventions import CONVENTIONS, UnknownModelError

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")  # the pipelines of diffusers import it
pytestmark = pytest.mark.filterwarnings("ignore")
CASES = PLAIN | MORE
STEPS = 3
# Their list of times ends with the clean one.
TIMES_END_CLEAN = ("StableCascadePriorPipeline",)


class AfterLastStep(Exception):
    """Leaves a pipeline before it asks for an image decoder."""


@functools.cache
def _innermost_loop(pipeline: type) -> str:
    """Source of the loop that takes the steps."""
    tree = ast.parse(inspect.getsource(pipeline).replace("\t", "    "))
    loops = [
        node for node in ast.walk(tree)
        if isinstance(node, ast.For) and "self.scheduler.step" in ast.unparse(node)
    ]  # fmt: skip
    return ast.unparse(loops[-1])


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
        self._scheduler = scheduler
        self._watch(model, "forward", lambda given, out: self.called or self.called.update(given))
        self._watch(scheduler, "set_timesteps", lambda given, out: self.setting.update(given))
        self._watch(scheduler, "step", self._stepped)
        run = self._whole if case.loop is None else self._loop_alone
        try:
            with contextlib.suppress(AfterLastStep):
                run(case, model, scheduler, arguments)
        finally:
            del model.forward
        assert self.steps == _steps(case, scheduler)
        if case.rounded:
            own = arguments["latents"].dtype
            self.first, self.last = self.first.to(own), self.last.to(own)
        if case.frames_apart:
            self.first, self.last = (v[None].transpose(1, 2) for v in (self.first, self.last))

    def _whole(self, case: Case, model: nn.Module, scheduler: Any, arguments: dict) -> None:
        pipe = case.made_pipeline(model, scheduler)
        pipe.set_progress_bar_config(disable=True)
        call = type(pipe).__call__
        while hasattr(call, "__wrapped__"):  # without its no_grad
            call = call.__wrapped__
        if case.drawn:
            noise = arguments.pop("latents")
            module = inspect.getmodule(type(pipe))
            del arguments["guidance_scale"]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "randn_tensor", lambda *shape, **more: noise)
                call(pipe, num_inference_steps=STEPS, **case.more)
        call(pipe, num_inference_steps=STEPS, output_type="latent", **arguments)

    def _loop_alone(self, case: Case, model: nn.Module, scheduler: Any, arguments: dict) -> None:
        assert case.loop is not None
        module = inspect.getmodule(getattr(diffusers, case.pipeline))
        source = _innermost_loop(getattr(diffusers, case.pipeline))
        for old, new in case.edits.items():
            assert source.count(old) == 1
            source = source.replace(old, new)
        scheduler.set_timesteps(**{"num_inference_steps": STEPS, **case.setting})
        bar = types.SimpleNamespace(update=lambda *_: None)
        asked = {
            "progress_bar": lambda times: times, "interrupt": False, "attention_kwargs": None,
            "do_classifier_free_guidance": False, "guidance_scale": 1.0, **case.owner,
        }  # fmt: skip
        # A guider keeps a state: every run makes its own.
        made = {k: v() if k == "guider" else v for k, v in (case.loop | asked).items()}
        asked |= {k: made[k] for k in asked}
        owner = types.SimpleNamespace(**{case.part: model, "scheduler": scheduler, **asked})
        space = {
            **vars(module), "self": owner, "device": "cpu",
            "timesteps": scheduler.timesteps[: _steps(case, scheduler)],
            "progress_bar": bar, "num_inference_steps": STEPS, "num_warmup_steps": 0,
            "callback_on_step_end": None, "callback": None, "generator": None, "dtype": model.dtype,
            "transformer_dtype": model.dtype, "do_classifier_free_guidance": False,
            "attention_kwargs": None, "cross_attention_kwargs": None, "extra_step_kwargs": {},
            "batch_size": 1, "guidance_scale": 1.0,
        }  # fmt: skip
        doubles = lambda v: isinstance(v, Tensor) and v.dtype is torch.float64  # noqa: E731
        constants = {k: made[k] for k in case.loop}
        space |= tree_map(lambda v: v.to(model.dtype) if doubles(v) else v, constants)
        space |= arguments
        exec(compile(source, case.pipeline, "exec"), space)

    def _watch(self, owner: Any, name: str, note: Callable) -> None:
        method = getattr(owner, name)
        names = list(inspect.signature(method).parameters)

        @functools.wraps(method)
        def watched(*values: Any, **called: Any) -> Any:
            called = dict(zip(names, values, strict=False)) | called
            if name == "step" and "generator" in names:  # that of sampler.generator(i)
                called["generator"] = torch.Generator().manual_seed(self.steps)
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


def _steps(case: Case, scheduler: Any) -> int:
    return len(scheduler.timesteps) - (case.pipeline in TIMES_END_CLEAN)


def loss(x_0: Tensor) -> Tensor:
    return (1 + x_0.double() ** 2).sqrt().sum()


def leaf(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_()


class Comparison:
    """A pipeline's loop, and what from_diffusers needs to repeat it."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.case, self.model, arguments = case, case.network(dtype), case.arguments(dtype)
        noise = arguments["latents"]
        self.loop = loop = Loop(case, self.model, arguments)
        network = from_diffusers(self.model, case.made_scheduler()).network
        key = case.condition or network.prompt
        given = dict(loop.called)
        latents = given.pop(network.latents)
        prompt = given.pop(key) if key else None
        self.listed = isinstance(prompt, list)  # Z-Image: a list of samples
        self.prompt = prompt[0] if self.listed else prompt
        bound = {k: v for k, v in given.items() if k not in (network.clock, "return_dict")}
        bound = tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, bound)
        if case.first_half:
            latents = latents[:1]
            bound = {k: v[:1] if isinstance(v, Tensor) else v for k, v in bound.items()}
        if case.guidance is not None:  # as a user says it
            bound["guidance"] = case.guidance
        if not self.listed and latents.shape != loop.first.shape:
            channels = network.convention.channels(loop.first)
            own = loop.first.shape[channels]
            beside = latents.narrow(channels, own, latents.shape[channels] - own)
            bound["extra_channels"] = beside.detach()
        self.bound = bound
        weights = [w for n, w in self.model.named_parameters() if n.endswith("weight")]
        self.weight = next(w for w in weights if w.requires_grad)
        self.noise = noise if noise.shape == loop.first.shape else loop.first

    def sampled(self, x_T: Tensor, z: Any, **said: Any) -> Tensor:
        setting = {
            k: v for k, v in self.loop.setting.items() if k not in ("num_inference_steps", "device")
        }
        given_times = any(setting.get(k) is not None for k in ("sigmas", "timesteps"))
        sampler = from_diffusers(
            self.model, self.case.made_scheduler(), **said, **self.bound
        ).sampler(None if given_times else STEPS, **setting)
        z = {self.case.condition: z} if self.case.condition else z[None] if self.listed else z
        return sample(sampler.denoiser, x_T, z, solver=sampler.solver, grid=sampler.grid).x_0

    def errors(self) -> tuple[list[float], list[float]]:
        """Relative errors of x_0, x_T, theta and z; and norms of the last three."""
        wrt = (self.noise, self.weight, *([] if self.prompt is None else [self.prompt]))
        theirs = torch.autograd.grad(loss(self.loop.last), wrt)
        x_T = leaf(self.loop.first)
        z = None if self.prompt is None else leaf(self.prompt)
        x_0 = self.sampled(x_T, z)
        ours = torch.autograd.grad(loss(x_0), (x_T, self.weight, *([] if z is None else [z])))
        errors = [relative_error(x_0, self.loop.last)]
        errors += [relative_error(a, b) for a, b in zip(ours, theirs, strict=True)]
        return errors, [float(gradient.norm()) for gradient in theirs]


@pytest.mark.parametrize("which", CASES)
def test_a_model_is_called_as_its_pipeline_calls_it(which: str) -> None:
    case = CASES[which]
    comparison = Comparison(case, case.dtype)
    errors, norms = comparison.errors()
    assert min(norms) > 0
    assert max(errors) < case.tolerance, errors
    # The comparison sees a wrong time and a wrong sign.
    convention = CONVENTIONS[case.model]
    negated = convention.output == "negated"
    for said in (
        {"time": lambda t: 0.5 * t + 0.1, "output": convention.output},
        {"output": "as is" if negated else "negated"},
    ):
        with torch.no_grad():
            x_0 = comparison.sampled(comparison.loop.first, comparison.prompt, **said)
        assert relative_error(x_0, comparison.loop.last) > 1e-5, said


@pytest.mark.parametrize("which", [name for name, case in CASES.items() if case.bfloat16])
def test_in_bfloat16_it_is_as_wrong_as_the_pipeline(which: str) -> None:
    errors, norms = Comparison(CASES[which], torch.bfloat16).errors()
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


def test_another_scheduler_than_that_of_stable_cascade_is_refused() -> None:
    model = CASES["stable cascade"].network(torch.float64)
    with pytest.raises(
        ValueError, match=r"say from_diffusers\(model, DDPMWuerstchenScheduler\(\)\)"
    ):
        from_diffusers(model, diffusers.DDPMScheduler())
    from_diffusers(model, diffusers.DDPMScheduler(), time=lambda timestep: timestep / 1000)


def test_mean_flow_takes_the_end_of_a_step_from_z() -> None:
    case = CASES["hunyuan image"]
    model = dataclasses.replace(case, config={**case.config, "use_meanflow": True}).network(
        torch.float64
    )
    scheduler = case.made_scheduler()
    noise, prompt = normal(1, 4, 4, 4, seed=1), normal(1, 5, 12, seed=2)
    bound = {"guidance": 3.5, "encoder_attention_mask": torch.ones(1, 5)}
    sampler = from_diffusers(model, scheduler, **bound).sampler(STEPS)
    run = {"solver": sampler.solver, "grid": sampler.grid}
    with pytest.raises(ValueError, match="also takes the time at which a step ends") as refused:
        sample(sampler.denoiser, noise, prompt, **run)
    space = {"PerStep": PerStep, "sampler": sampler, "prompt": prompt, "torch": torch}
    z = eval(str(refused.value).partition("say z=")[2], space)
    found = sample(sampler.denoiser, noise, z, **run).x_0
    scheduler.set_timesteps(STEPS)
    ends = (*scheduler.timesteps[1:], torch.zeros(()))
    x = noise
    for t, end in zip(scheduler.timesteps, ends, strict=True):
        given = {**bound, "guidance": torch.tensor([3500.0]), "timestep_r": end.expand(1).double()}
        out = model(x, t.expand(1).double(), prompt, return_dict=False, **given)[0]
        x = scheduler.step(out, t, x).prev_sample
    assert relative_error(found, x) < 1e-9


def test_extra_channels_are_a_condition() -> None:
    """Of an inpainting model: a gradient, one for each branch of guidance, a named misfit."""
    case = dataclasses.replace(CASES["stable diffusion xl"], config={**UNET, "in_channels": 9})
    model, scheduler = case.network(torch.float64), diffusers.DDIMScheduler(clip_sample=False)
    noise, mask = normal(2, 4, 8, 8, seed=1), normal(2, 5, 8, 8, seed=2).requires_grad_()
    prompt, none = normal(2, 5, 12, seed=3), normal(1, 5, 12, seed=4)
    sampler = from_diffusers(model, scheduler).sampler(STEPS)
    z = {"prompt": prompt, "extra_channels": mask}
    guided = Guidance(sampler.denoiser, {"prompt": none, "extra_channels": 0 * mask}, 3.0)
    x_0 = sample(guided, noise, z, solver=sampler.solver, grid=sampler.grid).x_0
    ours = torch.autograd.grad(loss(x_0), mask)[0]
    scheduler.set_timesteps(STEPS)
    x = noise
    for t in scheduler.timesteps:
        a = model(torch.cat([x, 0 * mask], 1), t, none.expand(2, -1, -1))[0]
        b = model(torch.cat([x, mask], 1), t, prompt)[0]
        x = scheduler.step(a + 3.0 * (b - a), t, x).prev_sample
    assert relative_error(x_0, x) < 1e-9
    assert relative_error(ours, torch.autograd.grad(loss(x), mask)[0]) < 1e-9
    with pytest.raises(ValueError, match=r"must have shape \(2, 5, 8, 8\), joined along dim.* 1"):
        sampler.denoiser(noise, sampler.grid[0].t, {**z, "extra_channels": mask[..., :4]})


def test_every_class_of_the_table_has_a_row() -> None:
    assert {case.model for case in CASES.values()} == set(CONVENTIONS)
