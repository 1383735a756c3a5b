"""Adapters, guidance and the analytic oracles."""

import pytest
import torch
from oracles import COND, DIM, MLPDenoiser, gaussian, inputs, mixture, normal, relative_error
from torch import nn

from adjointdeis import DDPM, RectifiedFlow, VPLinear
from adjointdeis.diffusion import (
    ClassifierFreeGuidance,
    EpsFromFlow,
    EpsFromV,
    EpsFromX0,
    FromTimesteps,
    GaussianDenoiser,
    MixtureDenoiser,
)
from adjointdeis.diffusion.prediction import (
    eps_from_v,
    eps_from_x0,
    v_from_eps,
    x0_from_eps,
)

T = torch.tensor(0.4, dtype=torch.float64)


def test_every_parametrisation_of_the_same_model_gives_the_same_eps() -> None:
    for schedule in (VPLinear(), RectifiedFlow()):
        oracle = mixture(schedule)
        alpha, sigma = float(schedule.alpha(T)), float(schedule.sigma(T))
        x, z = inputs()
        eps = oracle(x, T, z)
        x0 = x0_from_eps(x, eps, alpha, sigma)
        torch.testing.assert_close(alpha * x0 + sigma * eps, x)
        as_x0 = EpsFromX0(lambda x, t, z, x0=x0: x0, schedule)
        torch.testing.assert_close(as_x0(x, T, z), eps)
        as_v = EpsFromV(lambda x, t, z, v=alpha * eps - sigma * x0: v, schedule)
        torch.testing.assert_close(as_v(x, T, z), eps)
        torch.testing.assert_close(
            eps_from_v(x, v_from_eps(x, eps, alpha, sigma), alpha, sigma), eps
        )
        if isinstance(schedule, RectifiedFlow):
            as_flow = EpsFromFlow(lambda x, t, z, u=eps - x0: u, schedule)
            torch.testing.assert_close(as_flow(x, T, z), eps)


def test_a_data_prediction_is_refused_where_it_says_nothing() -> None:
    adapter = EpsFromX0(lambda x, t, z: x, VPLinear())
    with pytest.raises(ValueError, match="sigma = 0"):
        adapter(normal(2, DIM, seed=0), torch.zeros((), dtype=torch.float64), None)


@pytest.mark.parametrize("t", [0.001, 0.05, 0.4, 1.0])
def test_a_data_prediction_with_a_residual_is_the_noise_expected_of_it(t) -> None:
    """x_0 = m + s n: the posterior means of two normals, by conditioning a joint covariance."""
    schedule, when = DDPM(), torch.tensor(t, dtype=torch.float64)
    alpha, sigma, s = float(schedule.alpha(when)), float(schedule.sigma(when)), 0.07
    m, x = normal(2, DIM, seed=0), normal(2, DIM, seed=1)
    eps = EpsFromX0(lambda x, t, z: m, schedule, s)(x, when, None)
    # Latents (n, eps), observation x = alpha m + A (n, eps): mean A^T (A A^T)^-1 (x - alpha m).
    mixing = torch.tensor([alpha * s, sigma], dtype=torch.float64)
    residual, noise = mixing[:, None, None] / mixing.square().sum() * (x - alpha * m)
    torch.testing.assert_close(eps, noise)
    data, rho = x0_from_eps(x, eps, alpha, sigma), sigma / alpha
    torch.testing.assert_close(data, m + s * residual)
    torch.testing.assert_close(data, m + s**2 / (s**2 + rho**2) * (x / alpha - m))
    # The inverse: m from the noise.
    torch.testing.assert_close((x - eps * (sigma**2 + (alpha * s) ** 2) / sigma) / alpha, m)


def test_the_spread_joins_the_data_prediction_and_the_v_prediction() -> None:
    x, m = normal(2, DIM, seed=0), normal(2, DIM, seed=1)
    alpha, sigma = 0.8, 0.6
    plain = eps_from_x0(x, m, alpha, sigma)
    torch.testing.assert_close(eps_from_x0(x, m, alpha, sigma, 1e-9), plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        eps_from_x0(x, m, alpha, sigma, 1.0), eps_from_v(x, -sigma * m, alpha, sigma)
    )


def test_noise_dies_out_with_sigma_and_the_gain_is_bounded() -> None:
    schedule, s = VPLinear(), 0.07
    adapter = EpsFromX0(lambda x, t, z: torch.zeros_like(x), schedule, s)
    x = normal(2, DIM, seed=0)
    assert torch.equal(adapter(x, torch.zeros((), dtype=torch.float64), None), 0 * x)
    gains = []
    for t in torch.linspace(0, 0.2, 2001, dtype=torch.float64):
        gain = float((adapter(x, t, None) / x).mean())
        gains.append(gain * 2 * float(schedule.alpha(t)) * s)
    # The bound 1 / (2 alpha s) is met where rho = s.
    assert 0.999 < max(gains) <= 1 + 1e-12


def test_gradients_of_a_data_prediction_with_a_residual() -> None:
    schedule, t = VPLinear(), torch.tensor(0.03, dtype=torch.float64)
    network, (x, z) = MLPDenoiser(), inputs()
    adapter = EpsFromX0(network, schedule, 0.07)
    x, z = x.requires_grad_(), z.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, z: adapter(x, t, z), (x, z))
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    a = normal(*x.shape, seed=5)
    of_x, of_z = torch.autograd.grad(adapter(x, t, z), (x, z), a)
    m_x, m_z = torch.autograd.grad(network(x, t, z), (x, z), a)
    gain = sigma / (sigma**2 + (alpha * 0.07) ** 2)
    torch.testing.assert_close(of_x, gain * (a - alpha * m_x))
    torch.testing.assert_close(of_z, -gain * alpha * m_z)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float32, 1e-6)]
)
def test_low_precision_holds_down_to_the_first_timestep(dtype, tolerance) -> None:
    schedule = DDPM()
    x, m = normal(2, DIM, seed=0).to(dtype), (0.5 * normal(2, DIM, seed=1)).to(dtype)
    for timestep in (0, 1, 20, 500, 999):
        t = schedule.t_of_timestep(timestep)
        got = EpsFromX0(lambda x, t, z: m, schedule, 0.07)(x, t, None)
        want = EpsFromX0(lambda x, t, z: m.double(), schedule, 0.07)(x.double(), t, None)
        assert got.dtype == dtype
        # x - alpha m cancels: the error is one of x, times the gain.
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        gain = sigma / (sigma**2 + (alpha * 0.07) ** 2)
        size = gain * (x.abs().max() + m.abs().max())
        assert float((got.double() - want).abs().max()) <= tolerance * float(size)


@pytest.mark.parametrize("spread", [-0.1, float("nan"), float("inf")])
def test_a_spread_that_is_no_standard_deviation_is_refused(spread) -> None:
    with pytest.raises(ValueError, match="spread="):
        EpsFromX0(lambda x, t, z: x, VPLinear(), spread)


class TimestepNetwork(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, x, timesteps, z):
        self.seen.append(timesteps)
        return self.gain * x


def test_integer_timesteps_reach_the_network_as_a_batch() -> None:
    schedule, network = DDPM(), TimestepNetwork()
    denoiser = FromTimesteps(network, schedule)
    x = torch.zeros(3, 2)
    denoiser(x, schedule.t_of_timestep(637), None)
    denoiser(x, torch.zeros((), dtype=torch.float64), None)
    assert [seen.tolist() for seen in network.seen] == [[637] * 3, [0] * 3]
    assert network.seen[0].dtype == torch.int64
    FromTimesteps(network, schedule, rounded=False)(x, schedule.t_of_timestep(5) + 5e-4, None)
    assert network.seen[2].tolist() == pytest.approx([5.5] * 3)
    assert [name for name, _ in denoiser.named_parameters()] == ["network.gain"]


def test_guidance_extrapolates_from_the_unconditional_prediction() -> None:
    network, (x, z) = MLPDenoiser(), inputs()
    null = torch.zeros(COND, dtype=torch.float64)
    guided = ClassifierFreeGuidance(network, null, 2.5)
    without, conditional = network(x, T, torch.zeros_like(z)), network(x, T, z)
    torch.testing.assert_close(guided(x, T, z), without + 2.5 * (conditional - without))
    torch.testing.assert_close(ClassifierFreeGuidance(network, null, 1.0)(x, T, z), conditional)
    assert guided.evaluations == 2
    with pytest.raises(ValueError, match="condition"):
        guided(x, T, None)


def score_by_autograd(x, log_density):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(log_density(x).sum(), x)[0]


def test_the_mixture_is_the_score_of_its_density() -> None:
    oracle, (x, z) = mixture(), inputs()
    alpha, sigma = float(VPLinear().alpha(T)), float(VPLinear().sigma(T))

    def log_density(x):
        weights = oracle.logits.softmax(0)
        total = 0.0
        for k in range(3):
            centre = alpha * (oracle.means[k] + z @ oracle.weight[k].mT)
            scale = (alpha**2 * oracle.log_scales[k].exp() ** 2 + sigma**2).sqrt()
            density = torch.distributions.Normal(centre, scale.expand(DIM))
            total = total + weights[k] * density.log_prob(x).sum(-1).exp()
        return total.log()

    torch.testing.assert_close(oracle(x, T, z), -sigma * score_by_autograd(x, log_density))


def test_one_component_is_the_gaussian() -> None:
    g, (x, z) = gaussian(), inputs()
    one = MixtureDenoiser(
        VPLinear(), g.mean[None], g.log_scale.exp()[None], g.weight.detach()[None]
    )
    torch.testing.assert_close(one(x, T, z), g(x, T, z))


def test_the_gaussian_flow_solves_its_ode() -> None:
    g, (x, z), schedule = gaussian(), inputs(), VPLinear()
    step = 1e-5
    ahead, behind = (g.flow(x, T, T + d, z) for d in (step, -step))
    drift = schedule.dlog_alpha(T) * x - schedule.sigma(T) * schedule.dlmbda(T) * g(x, T, z)
    assert relative_error((ahead - behind) / (2.0 * step), drift) < 1e-8


def test_oracles_live_in_the_dtype_they_are_built_in() -> None:
    g = GaussianDenoiser(VPLinear(), torch.zeros(DIM), 0.5)
    assert g(torch.zeros(1, DIM), T).dtype == torch.float32
    assert len(list(g.parameters())) == 2
