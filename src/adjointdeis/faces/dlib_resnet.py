r"""dlib's face recognition ResNet in PyTorch: a real recogniser with gradients.

The 29-convolution network of `dlib_face_recognition_resnet_model_v1.dat`, read from that file
without dlib and without a compiler. Its peculiarities, which a standard ResNet lacks:

* Strided convolutions and pools have no padding, so that 150 x 150 ends as 2 x 2.
* The shortcut of a strided block is a 2 x 2 average pool; it has fewer channels than the block and,
  where 8 becomes 3 or 4, another size. The sum pads *both* with zeros to the larger shape.
* Batch normalisation is frozen to a channel-wise affine map, here folded into the convolution.
* The descriptor is neither biased nor normalised; descriptors are compared by Euclidean distance.

Black-box scores of dlib itself come from `dlib_models.DlibRecogniser`. A recogniser that served as
identity loss must not also be the judge.

References:
    | High Quality Face Recognition with Deep Metric Learning (King, 2017)
    | http://blog.dlib.net/2017/02/high-quality-face-recognition-with-deep.html
    | Deep Residual Learning for Image Recognition (He et al., 2016)
    | https://arxiv.org/abs/1512.03385
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from adjointdeis.faces.dlib_dat import DatError, DatLayer, DatNetwork, read_dat
from adjointdeis.faces.dlib_models import LICENCE, RECOGNITION_FILE, file_fingerprint, model_file
from adjointdeis.faces.recognisers.crop import FaceCrop
from adjointdeis.faces.recognisers.network import NetworkRecogniser

INPUT_SIZE = 150
_PIXEL_SCALE = 256.0  # dlib divides by 256, not 255

STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))
"""(channels, residual blocks, first block strided) from the input outwards."""

FFHQ_CHIP_BOX = (0.158, 0.258, 0.845, 0.945)
"""Where dlib's chip lies in an `ffhq-256` crop (left, top, right, bottom as fractions of the
frame): the mean over FRLL. A fixed crop is differentiable and needs no detector; over FRLL it
moves the descriptor by 0.09 on average and 0.15 at most, while two people are 0.5 apart or more."""


class Residual(nn.Module):
    """relu(shortcut + conv(relu(conv(x)))), the shortcut average-pooled if strided.

    Args:
        channels_in: Channels of x.
        channels: Channels of both convolutions.
        strided: Halve the resolution.
    """

    def __init__(self, channels_in: int, channels: int, strided: bool) -> None:
        super().__init__()
        self.strided = strided
        stride, padding = (2, 0) if strided else (1, 1)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, channels, H', W')."""
        shortcut = functional.avg_pool2d(x, 2, 2) if self.strided else x
        h = self.conv2(functional.relu(self.conv1(x)))
        return functional.relu(_add_padded(h, shortcut))


class DlibResNet(nn.Module):
    """dlib's recognition network.

    forward(x) maps images to descriptors:
        x: (B, 3, H, W) RGB in [-1, 1]; resized to 150 x 150 (bilinear, antialiased) if it is not.
        Returns (B, 128), not normalised, norm about 1.3.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, 2)
        blocks, channels_in = [], 32
        for channels, count, strided in STAGES:
            for index in range(count):
                blocks.append(Residual(channels_in, channels, strided and index == 0))
                channels_in = channels
        self.blocks = nn.ModuleList(blocks)
        self.descriptor = nn.Linear(channels_in, 128, bias=False)
        self.mean_rgb: Tensor
        self.register_buffer("mean_rgb", torch.tensor([122.782, 117.001, 104.298]))

    @classmethod
    def from_dat(cls, path: Path | str | None = None) -> "DlibResNet":
        """The network with the weights of a `.dat` file, frozen and in evaluation mode.

        Args:
            path: dlib_face_recognition_resnet_model_v1.dat; None takes the file of the package
                `face-recognition-models`.

        Raises:
            FileNotFoundError, DatError: No such file; not this network.
        """
        source = Path(path) if path is not None else model_file(RECOGNITION_FILE)
        network = cls()
        network._load(read_dat(source), str(source))
        return network.eval().requires_grad_(False)

    def _load(self, dat: DatNetwork, name: str) -> None:
        layers = _Layers(dat, name)
        layers.convolution(self.stem)
        layers.expect("relu", "max_pool")
        for block in self.blocks:
            assert isinstance(block, Residual)
            layers.convolution(block.conv1)
            layers.expect("relu")
            layers.convolution(block.conv2)
            layers.expect(*(["avg_pool"] if block.strided else []), "add_prev", "relu")
        layers.expect("avg_pool")
        layers.linear(self.descriptor)
        layers.end()
        with torch.no_grad():
            self.mean_rgb.copy_(torch.tensor(dat.mean_rgb))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) RGB in [-1, 1] to descriptors (B, 128)."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"x: expected (B, 3, H, W) RGB in [-1, 1], got {tuple(x.shape)}")
        if x.shape[-2:] != (INPUT_SIZE, INPUT_SIZE):
            x = functional.interpolate(
                x, (INPUT_SIZE, INPUT_SIZE), mode="bilinear", antialias=True, align_corners=False
            )
        pixels = (x + 1) * 127.5
        h = (pixels - self.mean_rgb[:, None, None].to(x.dtype)) / _PIXEL_SCALE
        h = functional.max_pool2d(functional.relu(self.stem(h)), 3, 2)
        for block in self.blocks:
            h = block(h)
        return self.descriptor(h.mean((2, 3)))


def _add_padded(a: Tensor, b: Tensor) -> Tensor:
    shape = [max(sizes) for sizes in zip(a.shape[1:], b.shape[1:], strict=True)]

    def pad(x: Tensor) -> Tensor:
        missing = [want - have for want, have in zip(shape, x.shape[1:], strict=True)]
        return functional.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]))

    return pad(a) + pad(b)


class _Layers:
    """Walks the layers of a file and checks each against the network that is being filled."""

    def __init__(self, dat: DatNetwork, name: str) -> None:
        self.remaining, self.name = list(dat.layers), name

    def take(self, kind: str) -> DatLayer:
        if not self.remaining or self.remaining[0].kind != kind:
            found = self.remaining[0].kind if self.remaining else "end of file"
            raise DatError(f"{self.name}: expected layer {kind}, found {found}")
        return self.remaining.pop(0)

    def expect(self, *kinds: str) -> None:
        for kind in kinds:
            self.take(kind)

    def convolution(self, module: nn.Conv2d) -> None:
        layer, affine = self.take("con"), self.take("affine")
        wanted = (
            module.out_channels,
            *module.kernel_size,
            *module.stride,
            *(int(p) for p in module.padding),
        )
        bias = module.bias
        assert bias is not None
        if layer.shape != wanted or layer.params.size != module.weight.numel() + bias.numel():
            raise DatError(f"{self.name}: convolution {layer.shape}, expected {wanted}")
        if affine.params.size != 2 * module.out_channels:
            raise DatError(f"{self.name}: affine layer of {affine.params.size} numbers")
        params = torch.from_numpy(layer.params)
        gamma, beta = torch.from_numpy(affine.params).chunk(2)
        weight, offset = params.split([module.weight.numel(), bias.numel()])
        with torch.no_grad():
            module.weight.copy_(weight.view_as(module.weight) * gamma[:, None, None, None])
            bias.copy_(offset * gamma + beta)

    def linear(self, module: nn.Linear) -> None:
        layer = self.take("fc")
        if layer.params.size != module.weight.numel():
            raise DatError(f"{self.name}: descriptor of {layer.params.size} weights")
        weight = torch.from_numpy(layer.params).view(module.in_features, module.out_features)
        with torch.no_grad():
            module.weight.copy_(weight.T)

    def end(self) -> None:
        if self.remaining:
            raise DatError(f"{self.name}: {len(self.remaining)} layers too many")


def dlib_port(path: Path | str | None = None) -> NetworkRecogniser:
    """The port as a white-box recogniser of `ffhq-256` crops, or of any aligned like them.

    A fixed crop stands in for dlib's landmarks: every step is differentiable and there is no
    failure to acquire. Its thresholds are its own: descriptors differ a little from those of
    `DlibRecogniser`, which looks for the face.

    Args:
        path: A `.dat` file; None takes the one of `face-recognition-models`.

    Raises:
        MissingPackageError, FileNotFoundError, DatError: No package; no file; not this network.
    """
    source = Path(path) if path is not None else model_file(RECOGNITION_FILE)
    return NetworkRecogniser(
        name="dlib-port",
        label="dlib (port)",
        network=DlibResNet.from_dat(source),
        crop=FaceCrop(INPUT_SIZE, FFHQ_CHIP_BOX),
        fingerprint=file_fingerprint(source),
        licence=LICENCE,
        metric="euclidean",
        dim=128,
        batch_size=32,
    )
