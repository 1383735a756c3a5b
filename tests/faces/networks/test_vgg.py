"""VGG16's first layers: torchvision's keys, the layers compared, the scale of the colours."""

import pytest
import torch
import torch.nn.functional as F

from adjointdeis.faces.networks.vgg import MEANS, VGG16, VGG16Config


def test_keys_and_shapes_are_torchvisions() -> None:
    widths = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256)}
    widths[14] = (256, 256)
    expected = {}
    for index, (inputs, outputs) in widths.items():
        expected[f"features.{index}.weight"] = (outputs, inputs, 3, 3)
        expected[f"features.{index}.bias"] = (outputs,)
    assert {k: tuple(v.shape) for k, v in VGG16().state_dict().items()} == expected


def test_maps_are_those_of_the_four_layers() -> None:
    torch.manual_seed(0)
    network = VGG16(VGG16Config(None)).double()
    state = network.state_dict()
    images = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    h = 255 * (images / 2 + 0.5) - 255 * torch.tensor(MEANS, dtype=torch.float64)[:, None, None]
    expected = {}
    plan = [("1_1", 0), ("1_2", 2), (), ("2_1", 5), ("2_2", 7), (), ("3_1", 10), ("3_2", 12)]
    for step in [*plan, ("3_3", 14)]:
        if not step:
            h = F.max_pool2d(h, 2)
            continue
        name, k = step
        h = F.conv2d(h, state[f"features.{k}.weight"], state[f"features.{k}.bias"], padding=1)
        h = expected[name] = h.relu()
    got = network(images)
    assert len(got) == 4
    for x, name in zip(got, ("1_1", "1_2", "2_2", "3_3"), strict=True):
        torch.testing.assert_close(x, expected[name], rtol=1e-12, atol=1e-12)


def test_images_are_resized_first() -> None:
    network = VGG16(VGG16Config(32))
    assert [x.shape[-1] for x in network(torch.zeros(1, 3, 64, 64))] == [32, 32, 16, 8]
    with pytest.raises(ValueError, match="image_size=2 is too small"):
        VGG16Config(2)
