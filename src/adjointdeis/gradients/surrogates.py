r"""Gradients of rewards from the literature, as settings of ``Surrogate``.

============================  ==============================  =======================  ============
name                          active steps                    weights                  bridge
============================  ==============================  =======================  ============
``Truncated(last=K)``         the last K (DRaFT-K)            1                        1
:func:`alignprop`             the last K, K at random         1                        1
:func:`refl`                  one of the last, at random      a leap to the end        0
:func:`drtune`                K evenly spaced                 1                        0
:func:`leapalign`             two, k < j at random            leaps k to j to the end  discount
:func:`flowbp_sparse`         K at random, late ones first    one factor for all       0
:func:`flowbp_bridge`         K at random and a step j        one factor for all       at j alone
:func:`flowbp_lagrange`       two, k < j at random            Lagrange quadrature      discount
:func:`sdo`                   one at random                   the whole path           1
:func:`lookahead`             the starts of K equal parts     leaps                    1
============================  ==============================  =======================  ============

All but the last draw their steps anew for every rollout, from ``generator`` or else from torch's
own; ``method.rule(steps, generator)`` is one such draw. The published training loops differ from
these gradients in two ways that belong to the sampler and to the loss:

* ReFL and DRTune stop at a step and show the reward the data predicted there. Sampling on
  ``grid.at([*range(stop + 1), N])`` does this: its last step is that prediction.
* LeapAlign weights the losses of samples by how near its leaps come to the states that were
  sampled, and DRaFT-LV adds losses of samples that were noised and denoised once more; the latter
  is ``DRaFT(last=1, noised=n)``.

References:
    ReFL (ImageReward), https://arxiv.org/abs/2304.05977
    DRaFT, https://arxiv.org/abs/2309.17400
    AlignProp, https://arxiv.org/abs/2310.03739
    DRTune, https://arxiv.org/abs/2405.00760
    LeapAlign, https://arxiv.org/abs/2604.15311
    FlowBP, https://arxiv.org/abs/2606.11075
    SDO, https://arxiv.org/abs/2505.07477
    MPC-Flow, https://arxiv.org/abs/2601.23231
"""

import torch

from adjointdeis.gradients.surrogate import Drawn, Lagrange, Parts, Rescaled, Surrogate


def refl(last: int = 10, generator: torch.Generator | None = None) -> Drawn:
    r"""ReFL: one of the last steps, from which the data are predicted at once.

    :math:`dL/d\theta = a_0\,\partial\hat x_0(x_\tau)/\partial\theta`, tau uniform among the last
    ``last`` steps. Bias: everything before tau, and that the path after it bends.
    """

    def rule(steps: int, generator: torch.Generator | None) -> Surrogate:
        step = steps - 1 - _integer(min(last, steps), generator)
        return Surrogate(active=(step,), weights="leaps", bridge=0.0)

    return Drawn(rule, generator)


def alignprop(generator: torch.Generator | None = None) -> Drawn:
    """AlignProp: exact through the last K steps, K uniform from 1 to N.

    Bias: early steps count more seldom than late ones; in the mean, step i of N counts for
    (i + 1) / N.
    """

    def rule(steps: int, generator: torch.Generator | None) -> Surrogate:
        return Surrogate(active=range(_integer(steps, generator), steps))

    return Drawn(rule, generator)


def drtune(count: int = 5, generator: torch.Generator | None = None) -> Drawn:
    r"""DRTune: evenly spaced steps, gradients stopped at the input of the network.

    :math:`dL/d\theta = a_0 \sum_{i \in A} h_i\,\partial v_i/\partial\theta`. Bias: what earlier
    steps do to the network's later answers, and the other steps. The stride is N // count, the
    first step uniform among those that leave room.
    """

    def rule(steps: int, generator: torch.Generator | None) -> Surrogate:
        number = min(count, steps)
        stride = steps // number
        start = _integer(steps - (number - 1) * stride, generator)
        return Surrogate(active=range(start, start + number * stride, stride), bridge=0.0)

    return Drawn(rule, generator)


def leapalign(discount: float = 0.3, generator: torch.Generator | None = None) -> Drawn:
    r"""LeapAlign: two leaps, k to j and j to the end, over the states that were sampled.

    :math:`\hat x_j = x_k + (\sigma_j - \sigma_k)\, v(x_k)` and
    :math:`\hat x_0 = \hat x_j + (\sigma_0 - \sigma_j)\, v(x_j)`, the gradient by the second
    network's state multiplied by ``discount``; k < j uniform. Bias: one velocity stands for a
    whole leap, and the discount.
    """

    def rule(steps: int, generator: torch.Generator | None) -> Surrogate:
        return Surrogate(active=_pair(steps, generator), weights="leaps", bridge=discount)

    return Drawn(rule, generator)


def flowbp_sparse(
    count: int = 4,
    late_bias: float = 1.0,
    share: float = 0.5,
    generator: torch.Generator | None = None,
) -> Drawn:
    """FlowBP-Sparse: a few steps by the sampler's weights, all multiplied by one factor.

    Steps are drawn without replacement, step i with a weight of (i + 1) ** late_bias; ``share``
    as for ``Rescaled``. Bias: as DRTune.
    """

    def rule(steps: int, generator: torch.Generator | None) -> Surrogate:
        active = _late(range(steps), count, late_bias, generator)
        return Surrogate(active=active, weights=Rescaled(share), bridge=0.0)

    return Drawn(rule, generator)


def flowbp_bridge(
    count: int = 5,
    late_bias: float = 4.0,
    bridge: float = 0.5,
    generator: torch.Generator | None = None,
) -> Drawn:
    """FlowBP-Bridge: the same, and one step j whose network sees what earlier ones did.

    j is uniform; ``count`` is divided between the steps before and those from j on in proportion
    to their number, j itself always among them. Bias: as DRTune, but for one product of Jacobians.
    """

    def rule(steps: int, generator: torch.Generator | None) -> Surrogate:
        if steps < 2 or count < 2:
            raise ValueError(f"flowbp_bridge needs 2 steps or more, got {min(steps, count)}")
        number, j = min(count, steps), 1 + _integer(steps - 1, generator)
        before = min(max(round(number * j / steps), 1, number - (steps - j)), j, number - 1)
        late = _late(range(j + 1, steps), number - before - 1, late_bias, generator)
        active = [*_late(range(j), before, late_bias, generator), j, *late]
        return Surrogate(active=active, bridge=[bridge * (step == j) for step in active])

    return Drawn(rule, generator)


def flowbp_lagrange(
    order: int = 4, bridge: float = 0.3, generator: torch.Generator | None = None
) -> Drawn:
    """FlowBP-Lagrange: LeapAlign whose leaps integrate a polynomial through known outputs.

    Bias: of each leap, all but the first of at most ``order`` outputs, and the bridge.
    """

    def rule(steps: int, generator: torch.Generator | None) -> Surrogate:
        active = _pair(steps, generator)
        return Surrogate(active=active, weights=Lagrange(order), bridge=bridge)

    return Drawn(rule, generator)


def sdo(generator: torch.Generator | None = None) -> Drawn:
    r"""SDO's shortcut: the graph of one step is kept, at random, and stands for all of them.

    :math:`\hat x_0 = x_T + h_\tau v(x_\tau) + \sum_{i \ne \tau} h_i\,\mathrm{sg}(v_i)` with the
    gradient of step tau multiplied by :math:`\sum_i h_i / h_\tau`, so that its mean over tau is
    that of the sum over the steps where these are equally long. The network's input is
    differentiated. Bias: all products of two Jacobians or more. The authors published no code
    and their equations could not be consulted; this is their abstract's description, and the
    factor, of which it says nothing, is ours.
    """

    def rule(steps: int, generator: torch.Generator | None) -> Surrogate:
        return Surrogate(active=(_integer(steps, generator),), weights=Rescaled(1.0))

    return Drawn(rule, generator)


def lookahead(horizon: int = 1) -> Surrogate:
    """MPC-Flow's horizon: the run in ``horizon`` leaps, each differentiated at its first state.

    With 1 it is ``OneStep`` for a DDIM sampler, with N it is exact. Bias: the turning of the
    network's output inside a leap. MPC-Flow steps through states of its own, because those of the
    sampler are not known yet when it plans; here they are, and are used.
    """
    return Surrogate(active=Parts(horizon), weights="leaps")


def _integer(below: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(below, (), generator=generator))


def _pair(steps: int, generator: torch.Generator | None) -> list[int]:
    """Two different steps, in order."""
    if steps < 2:
        raise ValueError(f"two leaps need 2 steps or more, got {steps}")
    return sorted(torch.randperm(steps, generator=generator)[:2].tolist())


def _late(among: range, count: int, bias: float, generator: torch.Generator | None) -> list[int]:
    """So many of these steps, without replacement, later ones with a larger probability."""
    if count <= 0 or not among:
        return []
    weights = torch.arange(1, len(among) + 1, dtype=torch.float64) ** bias
    drawn = torch.multinomial(weights, min(count, len(among)), generator=generator)
    return sorted(among[place] for place in drawn.tolist())
