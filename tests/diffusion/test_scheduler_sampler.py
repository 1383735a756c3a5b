"""Schedulers of diffusers as samplers: every one against its own loop, and what they refuse."""

import copy
import warnings
from types import SimpleNamespace

import pytest
import torch
from oracles import relative_error
from tiny_diffusers import normal
from tiny_schedulers import Network, gradients, made, model_of, own_loop, run_of

from adjointdeis import TimeGrid, VPLinear, sample
from adjointdeis.diffusion import from_diffusers
from adjointdeis.gradients import (
    AdjointDEIS,
    Backprop,
    DiscreteAdjoint,
    FlowGrad,
    NotSupportedError,
    OneStep,
)
from adjointdeis.solvers import DDIM

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")
STEPS = 6
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
V = {"prediction_type": "v_prediction"}


def case(name: str, run: dict | None = None, **config) -> tuple:
    return name, config, {"steps": STEPS} if run is None else run


# name of the class, its config, arguments of sampler(); the betas are Stable Diffusion's.
CASES = {
    "ddim": case("DDIMScheduler", clip_sample=False),
    "ddim, eta": case("DDIMScheduler", {"steps": STEPS, "eta": 0.7}, clip_sample=False),
    "ddim, clipped, eta": case(
        "DDIMScheduler", {"steps": STEPS, "eta": 1.0, "use_clipped_model_output": True}
    ),
    "ddim, zero snr": case("DDIMScheduler", clip_sample=False, **ZERO_SNR, **V),
    "ddim, thresholding": case("DDIMScheduler", thresholding=True, sample_max_value=2.0),
    "ddim, parallel": case("DDIMParallelScheduler", clip_sample=False),
    "ddim, inverse": case("DDIMInverseScheduler", clip_sample=False),
    "ddim, cogvideox": case(
        "CogVideoXDDIMScheduler", clip_sample=False, snr_shift_scale=3.0, **ZERO_SNR, **V
    ),
    "dpm, cogvideox": case("CogVideoXDPMScheduler", clip_sample=False, **ZERO_SNR, **V),
    "ddpm": case("DDPMScheduler"),
    "ddpm, timesteps": case("DDPMScheduler", {"timesteps": [900, 700, 650, 300, 50]}),
    "ddpm, large variance": case("DDPMScheduler", variance_type="fixed_large", clip_sample=False),
    "ddpm, parallel": case("DDPMParallelScheduler"),
    "pndm, Runge-Kutta": case("PNDMScheduler", {"steps": 8}, steps_offset=1),
    "pndm": case("PNDMScheduler", skip_prk_steps=True, set_alpha_to_one=True),
    "pndm, v": case("PNDMScheduler", {"steps": 8}, **V),
    "euler": case("EulerDiscreteScheduler"),
    "euler, v, trailing": case("EulerDiscreteScheduler", timestep_spacing="trailing", **V),
    "euler, exponential": case("EulerDiscreteScheduler", use_exponential_sigmas=True),
    "euler, beta": case("EulerDiscreteScheduler", use_beta_sigmas=True),
    "euler, zero snr": case("EulerDiscreteScheduler", **ZERO_SNR, **V),
    "euler, continuous": case(
        "EulerDiscreteScheduler", timestep_type="continuous", use_karras_sigmas=True,
        sigma_min=0.002, sigma_max=700.0, **V,
    ),
    "euler, churn": case("EulerDiscreteScheduler", {"steps": STEPS, "s_churn": 2.0}),
    "euler, timesteps": case("EulerDiscreteScheduler", {"timesteps": [999, 700, 400, 100]}),
    "euler, sigmas": case("EulerDiscreteScheduler", {"sigmas": [14.6, 5.0, 1.5, 0.4]}),
    "euler, ancestral, zero snr": case("EulerAncestralDiscreteScheduler", **ZERO_SNR, **V),
    "euler, ancestral": case("EulerAncestralDiscreteScheduler"),
    "heun": case("HeunDiscreteScheduler"),
    "heun, karras, clipped": case(
        "HeunDiscreteScheduler", use_karras_sigmas=True, clip_sample=True
    ),
    "heun, timesteps": case("HeunDiscreteScheduler", {"timesteps": [999, 600, 300]}),
    "kdpm2": case("KDPM2DiscreteScheduler", use_beta_sigmas=True),
    "kdpm2, ancestral": case("KDPM2AncestralDiscreteScheduler"),
    "kdpm2, ancestral, karras": case("KDPM2AncestralDiscreteScheduler", use_karras_sigmas=True),
    "lms": case("LMSDiscreteScheduler", {"steps": STEPS, "order": 3}, use_karras_sigmas=True),
    "dpm++ 2M": case("DPMSolverMultistepScheduler", timestep_spacing="leading", steps_offset=1),
    "dpm++ 3M, beta": case("DPMSolverMultistepScheduler", solver_order=3, use_beta_sigmas=True),
    "dpm++, heun": case("DPMSolverMultistepScheduler", solver_type="heun"),
    "dpm, noise": case(
        "DPMSolverMultistepScheduler", algorithm_type="dpmsolver", final_sigmas_type="sigma_min"
    ),
    "dpm++, sde": case("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
    "dpm, sde": case(
        "DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver",
        final_sigmas_type="sigma_min",
    ),
    "dpm++, lu": case("DPMSolverMultistepScheduler", use_lu_lambdas=True),
    "dpm++, euler at the end": case("DPMSolverMultistepScheduler", euler_at_final=True),
    "dpm++, zero snr": case("DPMSolverMultistepScheduler", **ZERO_SNR, **V),
    "dpm++, timesteps": case("DPMSolverMultistepScheduler", {"timesteps": [999, 600, 300, 20]}),
    "dpm++, flow": case("DPMSolverMultistepScheduler", **FLOW),
    "dpm++, inverse": case("DPMSolverMultistepInverseScheduler"),
    "dpm++, single": case("DPMSolverSinglestepScheduler", solver_order=3),
    "dpm++, single, karras": case("DPMSolverSinglestepScheduler", use_karras_sigmas=True),
    "dpm++, single, sde": case(
        "DPMSolverSinglestepScheduler", algorithm_type="sde-dpmsolver++"
    ),
    "dpm++, single, flow": case("DPMSolverSinglestepScheduler", **FLOW),
    "deis": case("DEISMultistepScheduler", use_karras_sigmas=True),
    "deis, order 3, flow": case("DEISMultistepScheduler", solver_order=3, **FLOW),
    "unipc": case("UniPCMultistepScheduler", solver_order=3, use_exponential_sigmas=True),
    "unipc, bh1, no corrector": case(
        "UniPCMultistepScheduler", solver_type="bh1", disable_corrector=[0, 2], predict_x0=False,
        final_sigmas_type="sigma_min",
    ),
    "unipc, zero snr": case("UniPCMultistepScheduler", **ZERO_SNR, **V),
    "unipc, flow": case("UniPCMultistepScheduler", **FLOW),
    "sa": case("SASolverScheduler", predictor_order=3, corrector_order=2),
    "ipndm": case("IPNDMScheduler"),
    "tcd": case("TCDScheduler", {"steps": 4, "eta": 0.3}),
    "lcm": case("LCMScheduler", {"steps": 4}),
    "lcm, original steps": case("LCMScheduler", {"steps": 4, "original_inference_steps": 20}),
    "edm, euler": case("EDMEulerScheduler"),
    "edm, euler, exponential, churn": case(
        "EDMEulerScheduler", {"steps": STEPS, "s_churn": 1.0}, sigma_schedule="exponential"
    ),
    "edm, v": case("EDMEulerScheduler", **V),
    "edm, dpm": case("EDMDPMSolverMultistepScheduler", solver_order=3),
    "edm, sde": case("EDMDPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++"),
    "cosine dpm": case("CosineDPMSolverMultistepScheduler", sigma_min=0.3, sigma_max=500.0),
    "dpm, brownian": case("DPMSolverSDEScheduler", noise_sampler_seed=3),
    "dpm, brownian, karras": case(
        "DPMSolverSDEScheduler", noise_sampler_seed=3, use_karras_sigmas=True
    ),
    "consistency": case("CMStochasticIterativeScheduler", {"steps": 4}),
    "unclip": case("UnCLIPScheduler", variance_type="fixed_small_log", prediction_type="sample"),
    "wuerstchen": case("DDPMWuerstchenScheduler"),
    "flow": case("FlowMatchEulerDiscreteScheduler", shift=3.0),
    "flow, mu": case(
        "FlowMatchEulerDiscreteScheduler", {"sigmas": [1.0, 0.8, 0.5, 0.3], "mu": 0.9},
        use_dynamic_shifting=True,
    ),
    "flow, mu, linear, terminal": case(
        "FlowMatchEulerDiscreteScheduler", {"steps": STEPS, "mu": 1.2}, use_dynamic_shifting=True,
        time_shift_type="linear", shift_terminal=0.1,
    ),
    "flow, karras": case("FlowMatchEulerDiscreteScheduler", use_karras_sigmas=True),
    "flow, beta": case("FlowMatchEulerDiscreteScheduler", use_beta_sigmas=True),
    "flow, inverted": case("FlowMatchEulerDiscreteScheduler", invert_sigmas=True),
    "flow, stochastic": case("FlowMatchEulerDiscreteScheduler", stochastic_sampling=True),
    "flow, heun": case("FlowMatchHeunDiscreteScheduler", shift=3.0),
    "flow, lcm": case("FlowMatchLCMScheduler", shift=3.0),
}  # fmt: skip


@pytest.mark.parametrize("which", CASES)
def test_a_scheduler_is_differentiated_as_it_samples(which: str) -> None:
    name, config, run = CASES[which]
    network, scheduler = Network(), made(name, config)
    noise = normal(2, 4, 3, 3, seed=1).requires_grad_()
    z = normal(2, 2, seed=2).requires_grad_()
    inputs = (noise, z, network.inside, network.outside)
    sampler = model_of(network, scheduler).sampler(**run)
    network.evaluations = 0
    wanted = own_loop(network, scheduler, noise, z, run, sampler.generator)
    assert network.evaluations == sampler.grid.steps
    theirs = gradients(wanted, inputs)
    assert all(float(gradient.norm()) > 0 for gradient in theirs)
    for method in (DiscreteAdjoint(), DiscreteAdjoint(snapshots=2), Backprop()):
        found = run_of(sampler, noise, z, method)
        run_of(sampler, 2 * noise, z, DiscreteAdjoint())  # another run in between
        ours = gradients(found, inputs)
        assert relative_error(found, wanted) < 1e-9
        for a, b in zip(ours, theirs, strict=True):
            assert relative_error(a, b) < 1e-9


def test_every_scheduler_of_diffusers_is_run_or_refused() -> None:
    """No scheduler is missing from the cases and from the list of refusals."""
    from adjointdeis.diffusion.from_diffusers import _NO_STEPS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = [n for n in dir(diffusers) if n.endswith("Scheduler") and n[0].isupper()]
    covered = {name for name, _, _ in CASES.values()} | set(_NO_STEPS)
    # Run by the models they belong to alone, and of no other use; each is one Euler step.
    special = {
        "FlowMapEulerDiscreteScheduler", "LTXEulerAncestralRFScheduler", "MiniMaxH3Scheduler",
        "PiflowScheduler", "KarrasVeScheduler", "VQDiffusionScheduler", "SchedulerMixin",
    }  # fmt: skip
    assert set(names) - covered <= special


def test_the_sampler_repeats_itself() -> None:
    scheduler = made("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"})
    network = Network()
    model = model_of(network, scheduler)
    noise, z = normal(1, 4, 3, 3, seed=1), normal(1, 2, seed=2)
    first, second = model.sampler(STEPS), model.sampler(STEPS)
    a = run_of(first, noise, z, None)
    torch.manual_seed(7)
    assert torch.equal(a, run_of(first, noise, z, None))
    assert torch.equal(a, run_of(second, noise, z, None))
    assert not torch.equal(a, run_of(model.sampler(STEPS, seed=1), noise, z, None))
    assert scheduler.num_inference_steps is None and scheduler.model_outputs == [None, None]


def test_a_scheduler_that_was_run_is_no_worse() -> None:
    """Its history holds tensors with a graph, on which its own deepcopy fails."""
    scheduler = made("DPMSolverMultistepScheduler", {})
    network = Network()
    noise, z = normal(1, 4, 3, 3, seed=1).requires_grad_(), normal(1, 2, seed=2)
    wanted = run_of(model_of(network, scheduler).sampler(STEPS), noise, z, None)
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps[:2]:
        scheduler.step(network(noise, t, z)[0], t, noise)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(scheduler)
    model = model_of(network, scheduler)
    assert torch.equal(run_of(model.sampler(STEPS), noise, z, None), wanted)
    assert model.grid(STEPS).steps == STEPS


def test_methods_that_evaluate_the_network_refuse_by_name() -> None:
    network = Network()
    sampler = model_of(network, made("DDIMScheduler", {"clip_sample": False})).sampler(STEPS)
    noise, z = normal(1, 4, 3, 3, seed=1).requires_grad_(), normal(1, 2, seed=2)
    for method in (AdjointDEIS(), OneStep()):
        with pytest.raises(NotSupportedError, match=r"DDIMScheduler\.step"):
            run_of(sampler, noise, z, method)
    with pytest.raises(ValueError, match="DDIMScheduler"):
        run_of(sampler, noise, z, FlowGrad())
    with pytest.raises(ValueError, match="counts its steps and has no noise levels"):
        sample(sampler.denoiser, noise, z, solver=DDIM(), grid=sampler.grid)
    with pytest.raises(ValueError, match="takes the 6 steps of its own sampler"):
        grid = TimeGrid.uniform_lmbda(VPLinear(), STEPS)
        sample(sampler.denoiser, noise, z, solver=sampler.solver, grid=grid)
    with pytest.raises(ValueError, match=r"nodes were left out.*grid=model.grid\(steps\)"):
        sampler.grid.at([0, 2, 4])
    with pytest.raises(ValueError, match="none of the 6 times"):
        sampler.denoiser(noise, torch.tensor(0.3, dtype=torch.float64), z)


def test_what_cannot_be_run_is_refused_by_name() -> None:
    network = Network()
    for name in ("RePaintScheduler", "ScoreSdeVeScheduler"):
        with pytest.raises(ValueError, match=f"{name} cannot be run step by step"):
            model_of(network, getattr(diffusers, name)()).sampler(4)
    model = model_of(network, made("DDIMScheduler", {}))
    with pytest.raises(TypeError, match=r"takes no mu, s_churn; its set_timesteps takes device"):
        model.sampler(4, mu=1.0, s_churn=2.0)
    with pytest.raises(ValueError, match="say how many steps"):
        model.sampler()
    flow = model_of(network, made("FlowMatchEulerDiscreteScheduler", {}))
    with pytest.raises(ValueError, match="3 times were given for 4 steps"):
        flow.sampler(4, sigmas=[1.0, 0.5, 0.2])
    sampler = model.sampler(4)
    noise = normal(1, 4, 3, 3, seed=1)
    for strength in (0.5, 0.0, 1.5):
        with pytest.raises(ValueError, match="below 1 it needs an image"):
            sampler.initial(noise, strength=strength)
    with pytest.raises(ValueError, match="leaves none of the 4 steps"):
        sampler.initial(noise, noise, strength=0.1)
    inner = made("UniPCMultistepScheduler", {"solver_p": made("DDIMScheduler", {})})
    with pytest.raises(ValueError, match="a scheduler of its own"):
        model_of(network, inner).sampler(4)


def test_a_state_is_not_taken_from_another_step_on() -> None:
    sampler = model_of(Network(), made("DDIMScheduler", {"clip_sample": False})).sampler(4)
    noise, z = normal(1, 4, 3, 3, seed=1), normal(1, 2, seed=2)
    pure, whole = sampler.initial(noise), sampler.grid
    half = sampler.initial(noise, noise, strength=0.5)
    assert (whole.steps, sampler.grid.steps) == (4, 2)
    for x_T, grid in ((pure, sampler.grid), (half, whole), (half.detach(), whole)):
        with pytest.raises(ValueError, match="was made to start at step"):
            sample(sampler.denoiser, x_T, z, solver=sampler.solver, grid=grid)
    for x_T, grid in ((pure, whole), (half, sampler.grid), (noise, whole)):
        sample(sampler.denoiser, x_T, z, solver=sampler.solver, grid=grid)
    with pytest.raises(TypeError, match=r"Network is no scheduler of diffusers.*pipe\.scheduler"):
        from_diffusers(Network(), Network())


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {"clip_sample": False}), ("DDIMScheduler", {"clip_sample": False, **V}),
        ("EulerDiscreteScheduler", V), ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("DDPMScheduler", {"clip_sample": False, "prediction_type": "sample"}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ],
)  # fmt: skip
def test_the_trajectory_holds_what_the_network_says_of_the_data(name: str, config: dict) -> None:
    scheduler, network = made(name, config), Network()
    noise, z = normal(1, 4, 3, 3, seed=1).requires_grad_(), normal(1, 2, seed=2).requires_grad_()
    sampler = model_of(network, scheduler).sampler(4)
    rollout = sample(
        sampler.denoiser, sampler.initial(noise), z, solver=sampler.solver, grid=sampler.grid,
        trajectory=True,
    )  # fmt: skip
    scheduler.set_timesteps(4)
    x, predictions = sampler.initial(noise), []
    for i, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = network(scaled, t, z)[0]
        arguments = {"generator": sampler.generator(i)} if name != "DDIMScheduler" else {}
        if name.startswith("Flow"):
            predictions.append(x - float(scheduler.sigmas[i]) * out)
        step = scheduler.step(out, t, x, **arguments)
        if not name.startswith("Flow"):
            predictions.append(step.pred_original_sample)
        x = step.prev_sample
    assert len(rollout.states) == 5 and len(rollout.predictions) == 4
    theirs = gradients(torch.stack(predictions), (noise, z, network.inside))
    ours = gradients(torch.stack(rollout.predictions), (noise, z, network.inside))
    for a, b in zip((*rollout.predictions, *ours), (*predictions, *theirs), strict=True):
        assert relative_error(a, b) < 1e-5


def test_a_trajectory_of_unknown_levels_is_refused() -> None:
    noise, z = normal(1, 4, 3, 3, seed=1).requires_grad_(), normal(1, 2, seed=2)
    for name in ("EDMEulerScheduler", "KDPM2DiscreteScheduler"):
        sampler = model_of(Network(), made(name, {})).sampler(4)
        with pytest.raises(ValueError, match=f"noise levels of {name} are its own"):
            sample(
                sampler.denoiser, sampler.initial(noise), z, solver=sampler.solver,
                grid=sampler.grid, trajectory=True,
            )  # fmt: skip


class Forgetful:
    """A scheduler that keeps something new in every run."""

    config = {"prediction_type": "epsilon"}

    def __init__(self) -> None:
        self.runs = 0

    def set_timesteps(self, num_inference_steps: int) -> None:
        self.timesteps = torch.arange(num_inference_steps).flip(0)

    def step(self, model_output, timestep, sample):
        self.last = Counter.next()
        return (sample - 0.1 * model_output,)


class Counter:
    value = 0

    @classmethod
    def next(cls) -> int:
        cls.value += 1
        return cls.value


def test_a_scheduler_that_is_no_function_of_its_inputs_is_refused() -> None:
    sampler = model_of(Network(), Forgetful()).sampler(3)
    noise, z = normal(1, 4, 3, 3, seed=1).requires_grad_(), normal(1, 2, seed=2)
    x_0 = run_of(sampler, noise, z, DiscreteAdjoint())
    with pytest.raises(ValueError, match="Forgetful holds something else than in an earlier run"):
        x_0.sum().backward()


@pytest.mark.parametrize("steps", [0, -1, 2.5, "4", torch.tensor(4)], ids=str)
def test_a_number_of_steps_is_a_whole_one(steps) -> None:
    model = from_diffusers(Network(), diffusers.DDIMScheduler())
    with pytest.raises(ValueError, match=r"a whole number above 0, such as sampler\(20\)"):
        model.sampler(steps)


def test_what_is_no_model_or_has_learned_levels_is_refused_by_name() -> None:
    scheduler = diffusers.DDIMScheduler()
    pipeline = SimpleNamespace(transformer=Network(), scheduler=scheduler)
    for model, message in (
        (pipeline, r"from_diffusers\(pipe.transformer, pipe.scheduler\)"),
        (None, r"NoneType is no module.*pipe.unet"),
        (lambda sample, timestep: sample, "a function goes into a module"),
    ):
        with pytest.raises(TypeError, match=message):
            from_diffusers(model, scheduler)
    with pytest.raises(TypeError, match=r"DDIMScheduler is no scheduler.*it is a class"):
        from_diffusers(Network(), diffusers.DDIMScheduler)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.requires_grad_() * 1.0
    with pytest.raises(ValueError, match="alphas_cumprod of DDIMScheduler requires a gradient"):
        from_diffusers(Network(), scheduler).sampler(4)
