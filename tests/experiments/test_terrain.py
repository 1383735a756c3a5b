"""The terrain model, where it is installed: exact gradients through a network with real weights."""

import sys

import pytest
import torch

from adjointdeis.gradients import DiscreteAdjoint
from adjointdeis.solvers import DDIM
from experiments.terrain import run as terrain


@pytest.mark.slow
def test_exact_gradients_of_a_network_with_real_weights() -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("terrain_diffusion")
    model = terrain.Terrain(terrain.terrain_file())
    assert sum(weight.numel() for weight in model.parameters()) == 10_456_637
    truth = terrain.gradient_of(model, DDIM(), terrain.Backprop(), 2)
    found = terrain.gradient_of(model, DDIM(), DiscreteAdjoint(snapshots=1), 2)
    for name in ("x_T", "z"):
        assert truth[name].norm() > 0
        assert (found[name] - truth[name]).norm() < 1e-5 * truth[name].norm()
    # One evaluation at the largest level is already an image: a consistency model.
    x = terrain.SIGMA_MAX * torch.randn(1, 1, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        image = model(x, torch.tensor([terrain.SIGMA_MAX]), torch.tensor([50.0]))
    assert float(image.std()) > 0.05


def test_the_study_says_what_to_install(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "terrain_diffusion", None)
    monkeypatch.setattr("sys.argv", ["run"])
    with pytest.raises(SystemExit):
        terrain.main()
    assert "pip install --no-deps adaptive-terrain-diffusion==0.4.2" in capsys.readouterr().err
