"""Who may see whom: disjoint ranges of identity seeds, one per use."""

RANGE = 1_000_000
ROLES = {
    name: (i + 1) * RANGE
    for i, name in enumerate(
        (
            "test",
            "tuning",
            "threshold",
            "guide",
            "arcface",
            "elasticface",
            "adaface",
            "selector",
            "autoencoder",
            "validation",
            "detection",
            "probe",
            "example",
            "generator",
        )
    )
}
# Appearances that are drawn anew live above every role, so none of them is a test identity's.
FIRST_APPEARANCE = 1_000_000_000


def identity_seed(role: str, i: int) -> int:
    """Seed of the i-th identity of a role.

    ``test`` is the frozen benchmark, ``tuning`` chooses hyper-parameters, ``threshold`` sets
    verification thresholds, ``guide`` trains the network of the identity loss, ``arcface``,
    ``elasticface`` and ``adaface`` train the recognisers that judge, ``selector`` the one that
    chooses look-alike pairs, ``autoencoder`` the diffusion model, ``generator`` the adversarial
    one; ``validation`` watches trainings.

    Raises:
        ValueError: unknown role, or an index outside the role's million.
    """
    if role not in ROLES:
        raise ValueError(f"role {role!r} is unknown; it is one of {', '.join(ROLES)}")
    if not 0 <= i < RANGE:
        raise ValueError(f"identity {i} of role {role!r} does not exist; use 0..{RANGE - 1}")
    return ROLES[role] + i
