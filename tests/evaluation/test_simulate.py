"""The simulation's closed-form truth against large samples, and the study's coverage."""

import numpy as np
import pytest

from adjointdeis.evaluation import EvaluationError, group, vulnerability
from adjointdeis.evaluation.simulate import DyadicModel, simulate, synthetic_table


@pytest.mark.parametrize("fmr", [0.001, 0.01])
def test_truth_equals_a_large_sample(fmr):
    model = DyadicModel(morph=0.3)
    tau = model.threshold(fmr)
    false, hits = [], []
    for seed in range(20):
        s = simulate(model, n_subjects=200, n_morphs=2000, seed=seed)
        groups = group(s.morph_scores.ravel(), np.repeat(range(2000), 2), s.morph_pairs.ravel())
        hits.append(vulnerability(groups, tau, "MMPMR").value)
        false.append((s.impostor_scores > tau).mean())
    for values, truth in ((false, fmr), (hits, model.mmpmr(fmr))):
        # Studies are independent, so their spread gives the error of their mean.
        assert abs(np.mean(values) - truth) < 3.5 * np.std(values) / np.sqrt(len(values))


def test_study_is_seeded_and_pairs_are_distinct():
    a, b = (simulate(DyadicModel(), n_subjects=20, n_morphs=60, seed=5) for _ in range(2))
    assert np.array_equal(a.morph_scores, b.morph_scores)
    assert len({tuple(p) for p in a.morph_pairs}) == 60
    assert (a.morph_pairs[:, 0] < a.morph_pairs[:, 1]).all()
    assert len(a.impostor_scores) == 20 * 19
    with pytest.raises(EvaluationError, match="at most 6"):
        simulate(DyadicModel(), n_subjects=4, n_morphs=7)


def test_synthetic_table_is_whole_and_seeded():
    table, subjects = synthetic_table(n_subjects=8, n_morphs=5, seed=1)
    again, _ = synthetic_table(n_subjects=8, n_morphs=5, seed=1)
    assert again.fingerprint() == table.fingerprint()
    assert set(table["kind"]) == {"mated", "nonmated", "morph", "mad"}
    assert set(table.unique("subject_id")) <= set(subjects.by_id)
    assert "no person" in table.metadata["note"]
