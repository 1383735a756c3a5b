"""The coverage study: a quick check that it counts right, and the claim itself as a slow study."""

import pytest

from adjointdeis.evaluation.simulate import DyadicModel
from experiments.uncertainty.coverage import METHODS, coverage_study, model_of_rate

MODEL = DyadicModel(subject_sd=0.03, morph=0.27, noise_sd=0.07)


def test_counts_and_widths_are_consistent():
    found = coverage_study(
        MODEL, fmr=0.01, n_subjects=30, n_morphs=60, studies=30, replicates=60, seed=2
    )
    assert [c.method for c in found] == list(METHODS)
    for c in found:
        assert c.covered + c.truth_below + c.truth_above == c.studies == 30
        assert c.share == c.covered / 30
    wilson, fixed, propagated, reported = found
    assert reported.mean_width >= propagated.mean_width and reported.share >= propagated.share
    assert wilson.mean_width < fixed.mean_width < propagated.mean_width
    # With thirty studies only a gross failure shows: nominal 95% must not fall below 80%.
    assert propagated.share >= 0.8
    assert wilson.share < propagated.share


@pytest.mark.slow
@pytest.mark.parametrize("separate", [False, True])
def test_bootstrap_with_tau_covers_at_frll_size(separate):
    found = {
        c.method: c
        for c in coverage_study(MODEL, studies=300, replicates=300, separate_impostors=separate)
    }
    assert found["bootstrap, tau re-estimated"].share >= 0.93
    assert found["wilson"].share < 0.8


@pytest.mark.parametrize(("rate", "n_subjects", "n_morphs"), [(0.995, 10, 45), (0.97, 30, 100)])
def test_the_reported_interval_covers_at_the_edge_where_the_bootstrap_collapses(
    rate, n_subjects, n_morphs
):
    model = model_of_rate(rate, 0.001)
    assert model.mmpmr(0.001) == pytest.approx(rate, abs=1e-9)
    found = coverage_study(
        model, n_subjects=n_subjects, n_morphs=n_morphs, studies=60, replicates=60, seed=1
    )
    share = {c.method: c.share for c in found}
    assert share["as reported"] >= 0.93 > share["bootstrap, tau re-estimated"]
