"""What the study compares: how many pairs, and which attack; the most telling ones first."""

from study import Setting

BATCH = 12  # pairs at a time; results do not depend on it, but for rounding

_ALL = [
    # The exact gradient, few sampling steps, few steps of Adam.
    Setting("exact", "Adam", 0.03, n=5, encode=50, steps=10),
    Setting("exact", "Adam", 0.03, n=10, encode=50, steps=8),
]
_SOME = [
    # Optimisers at N = 10.
    Setting("exact", "Adam", 0.03, n=10, encode=50, steps=20),
    Setting("exact", "SGD", 0.3, n=10, encode=50, steps=10),
    Setting("exact", "L-BFGS", 0.5, n=10, encode=50, steps=10),
    Setting("exact", "momentum", 0.1, n=10, encode=50, steps=10),
    Setting("exact", "RAdam", 0.03, n=10, encode=50, steps=10),
    # Fewer sampling steps, and another learning rate of z.
    Setting("exact", "Adam", 0.03, n=5, encode=50, steps=12),
    Setting("exact", "Adam", 0.01, z_lr=0.1, n=10, encode=50, steps=10),
    # The paper's gradient with the paper's and with the better optimiser.
    Setting("AdjointDEIS-1", "SGD", 0.1, n=20, encode=50, steps=10),
    Setting("AdjointDEIS-1", "Adam", 0.03, n=20, encode=50, steps=10),
    # The SDE sampler, whose noises depend on the seed.
    *(
        Setting("exact", "Adam", 0.03, n=10, steps=8, calculus="sde", seed=seed)
        for seed in range(3)
    ),
]

SETTINGS: list[tuple[int | None, Setting]] = [
    *((None, setting) for setting in _ALL),
    *((24, setting) for setting in _SOME),
]
