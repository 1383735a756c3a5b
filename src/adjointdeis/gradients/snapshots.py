r"""Binomial checkpointing: which states to keep when fewer than N may be kept.

With s states stored at a time, the adjoint of N steps needs at least

.. math:: t(N, s) = r N - \binom{s + r}{r - 1}, \qquad
          r = \min\{r : \tbinom{s + r}{s} \ge N\}

forward advances besides the N evaluations that build a graph; the sampling run itself is the
first sweep and covers N - 1 of them, so t(N, s) - (N - 1) are recomputed.

References:
    Algorithm 799: revolve (Griewank and Walther, 2000), https://doi.org/10.1145/347837.347846
"""

from math import comb


def repetitions(steps: int, snapshots: int) -> int:
    """r, the smallest number of sweeps with which ``snapshots`` states suffice."""
    r = 0
    while comb(snapshots + r, snapshots) < steps:
        r += 1
    return r


def advances(steps: int, snapshots: int) -> int:
    """t(N, s): the least number of forward advances, the first sweep included."""
    r = repetitions(steps, snapshots)
    return r * steps - comb(snapshots + r, r - 1) if r else 0


def next_snapshot(steps: int, snapshots: int) -> int:
    """How far beyond its first state the next snapshot of a segment belongs.

    Args:
        steps: length n of the segment, at least 2.
        snapshots: states that may be stored in it, the first one included, at least 2.

    Returns:
        m in 1..n-1. Both parts then need the least possible work: the later n - m steps
        with one state fewer, the first m with all of them and one sweep less.
    """
    r = repetitions(steps, snapshots)
    return min(comb(snapshots + r - 1, snapshots), steps - comb(snapshots + r - 2, snapshots - 1))


def placements(first: int, steps: int, snapshots: int) -> list[int]:
    """Numbers of the steps whose input to store while sweeping over a segment once.

    At most ``snapshots`` of them, that of its first step included.
    """
    chosen = [first]
    while steps > 1 and snapshots > 1:
        ahead = next_snapshot(steps, snapshots)
        chosen.append(chosen[-1] + ahead)
        steps, snapshots = steps - ahead, snapshots - 1
    return chosen
