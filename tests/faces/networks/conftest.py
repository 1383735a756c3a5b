"""Deterministic weights and inputs, by which two implementations of one network are compared."""

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn


def fill_network(network: nn.Module) -> nn.Module:
    """Gives a network, real or on the meta device, weights that depend on its keys alone."""
    values = {}
    for key, value in network.state_dict().items():
        index = torch.arange(value.numel(), dtype=torch.float64)
        wave = torch.sin(0.7390851 * index + 0.01 * (zlib.crc32(key.encode()) % 1000))
        if key.endswith("num_batches_tracked"):
            wave = torch.zeros(value.numel())
        elif key.endswith("running_var"):
            wave = 1 + 0.25 * wave
        elif value.ndim == 1 and key.endswith("weight"):
            wave = 1 + 0.1 * wave
        elif value.ndim == 1:
            wave = 0.05 * wave
        else:
            wave = wave * math.sqrt(2 / value[0].numel())
        dtype = value.dtype if value.dtype == torch.int64 else torch.float32
        values[key] = wave.reshape(value.shape).to(dtype)
    network.load_state_dict(values, strict=True, assign=True)
    return network.eval()


def probe_image(*shape: int, phase: float = 0.0) -> Tensor:
    """A smooth image, the same on every machine."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(0.0137 * index + phase).reshape(shape).float()


def probe_code(*shape: int, phase: float = 0.3) -> Tensor:
    """A smooth code, the same on every machine."""
    index = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.cos(0.11 * index + phase).reshape(shape).float()


def check_probe(output: Tensor, reference: Mapping) -> None:
    """Compares an output with the official implementation's, within 1e-4 of its deviation."""
    assert list(output.shape) == reference["shape"]
    flat = output.detach().double().flatten()
    index = [(7919 * j + 13) % flat.numel() for j in range(len(reference["value"]))]
    wanted = torch.tensor(reference["value"], dtype=torch.float64)
    tolerance = 1e-4 * reference["std"]
    assert (flat[index] - wanted).abs().max() <= tolerance
    assert abs(flat.mean().item() - reference["mean"]) <= tolerance
    assert abs(flat.std().item() - reference["std"]) <= tolerance


class Golden:
    """The functions above, for tests that cannot import this file by name."""

    fill = staticmethod(fill_network)
    image = staticmethod(probe_image)
    code = staticmethod(probe_code)
    check = staticmethod(check_probe)


@pytest.fixture(scope="session")
def golden() -> type[Golden]:
    return Golden


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder of the official implementations' probes; skips the test where there is none."""
    named = os.environ.get("ADJOINTDEIS_REFERENCE")
    root = Path(named) if named else Path(__file__).parents[4] / "shared" / "reference"
    if not (root / "golden.json").is_file():
        pytest.skip("no probes of the official networks (set ADJOINTDEIS_REFERENCE)")
    return root


@pytest.fixture(scope="session")
def probes(reference: Path) -> dict:
    return json.loads((reference / "golden.json").read_text())
