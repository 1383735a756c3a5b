r"""The worst-case morph: an attack-independent reference for a pair of subjects and a recogniser.

An embedding halfway between two unit embeddings,
:math:`z_{wc} = (z_a + z_b) / \lVert z_a + z_b \rVert`, has the largest possible smaller cosine to
the two. No morph can beat it against :math:`z_a, z_b` themselves; against other probes of the same
subjects it is a strong reference, not a strict bound. The share that an attack reaches of the
MMPMR of these embeddings (wcMMPMR) says how near an attack comes to what is possible.

References:
    | Worst-Case Morphs: a Theoretical and a Practical Approach (Kelly et al., 2021)
    | https://arxiv.org/abs/2111.15416
    | Find the Differences: Differential Morphing Attack Detection vs Face Recognition
      (Kelly et al., 2026), which names the wcMMPMR
    | https://arxiv.org/abs/2604.14734
"""

import numpy as np

from adjointdeis.evaluation.errors import EvaluationError


def worst_case_embedding(z_a: np.ndarray, z_b: np.ndarray) -> np.ndarray:
    """The unit embedding halfway between two; inputs shape (..., d), any length but zero.

    Args:
        z_a, z_b: Embeddings of the two subjects, shape (..., d).

    Raises:
        EvaluationError: when an embedding is zero, or the two point in opposite directions.
    """
    total = _unit(z_a) + _unit(z_b)
    if (np.linalg.norm(total, axis=-1) < 1e-9).any():
        raise EvaluationError("opposite embeddings have no halfway embedding")
    return _unit(total)


def worst_case_scores(
    z_a: np.ndarray, z_b: np.ndarray, probe_a: np.ndarray, probe_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of the worst-case embedding with a probe of each subject; inputs shape (..., d).

    Write them as `morph` rows of the attack `worst-case` and `evaluate` adds the bound and the
    share of it reached to every other attack on the same pairs.

    Args:
        z_a, z_b: Embeddings of the morphed images, shape (..., d).
        probe_a, probe_b: Embeddings of a probe of each subject, shape (..., d).
    """
    z = worst_case_embedding(z_a, z_b)
    return (z * _unit(probe_a)).sum(axis=-1), (z * _unit(probe_b)).sum(axis=-1)


def worst_case_bound(z_a: np.ndarray, z_b: np.ndarray) -> np.ndarray:
    r"""The largest cosine that one embedding can have with two others at once.

    It is :math:`\sqrt{(1 + z_a \cdot z_b)/2}`, of the embedding half way between them; a morph may
    come closer to one of the two, never to both.

    Args:
        z_a, z_b: Unit embeddings, shape (..., d).
    """
    cosine = (_unit(z_a) * _unit(z_b)).sum(axis=-1)
    return np.sqrt((1 + np.clip(cosine, -1, 1)) / 2)


def _unit(z: np.ndarray) -> np.ndarray:
    z = np.asarray(z, dtype=np.float64)
    norm = np.linalg.norm(z, axis=-1, keepdims=True)
    if (norm == 0).any():
        raise EvaluationError("an embedding is zero; expected vectors with a direction")
    return z / norm
