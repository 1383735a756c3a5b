"""A diffusion autoencoder as the morphing attacks see it: encode, decode, predict noise."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from adjointdeis.diffusion.denoiser import EpsFromV, EpsFromX0, FromTimesteps
from adjointdeis.diffusion.execution import Execution
from adjointdeis.diffusion.grid import TimeGrid
from adjointdeis.diffusion.schedule import DDPM
from adjointdeis.faces.networks import DiffAE
from adjointdeis.rollout import Encoding, encode, sample
from adjointdeis.solvers import DDIM

PLAIN = Execution()
EncodingGrid = Literal["ddim_stride", "greedy_dim"]
Prediction = Literal["eps", "v", "x0"]


@dataclass(frozen=True, eq=False)
class Autoencoder:
    """A trained network with the meaning of its output.

    Args:
        network: The diffusion autoencoder, frozen and in evaluation mode.
        prediction: What the network predicts: "eps" for the official weights, "x0" for the
            embedded ones, or "v".
        fingerprint: SHA-256 of the weight file.
        licence: Licence of the weights, one line.
        execution: How the noise prediction is run; codes are always made in float32.
        spread: Of what an "x0" prediction leaves out (:class:`EpsFromX0`); 0 with the others.
    """

    network: DiffAE
    prediction: Prediction
    fingerprint: str
    licence: str
    execution: Execution = PLAIN
    spread: float = 0.0

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            raise ValueError(
                f"prediction={self.prediction!r} must be one of {', '.join(get_args(Prediction))}"
            )
        if self.spread and self.prediction != "x0":
            raise ValueError(
                f"spread={self.spread} belongs to prediction='x0', not {self.prediction!r}"
            )

    @property
    def schedule(self) -> DDPM:
        """The discrete schedule that the network was trained on."""
        return DDPM()

    @property
    def denoiser(self) -> nn.Module:
        """Noise prediction ``(x, t, z) -> eps``."""
        timed = FromTimesteps(self._executed, self.schedule)
        if self.prediction == "x0":
            return EpsFromX0(timed, self.schedule, self.spread)
        return timed if self.prediction == "eps" else EpsFromV(timed, self.schedule)

    @cached_property
    def _executed(self) -> nn.Module:
        # Made at the first use, when the network is on the device that it stays on.
        config, first = self.network.config, next(self.network.parameters())
        shape = (2, config.channels, config.image_size, config.image_size)
        x, z = first.new_zeros(shape), first.new_zeros(2, config.code_channels)
        timesteps = torch.zeros(2, dtype=torch.long, device=first.device)
        return self.execution.of(self.network, (x, timesteps, z))

    def code(self, images: Tensor) -> Tensor:
        """Semantic codes (B, D) of images (B, 3, H, W) in [-1, 1]."""
        return self.network.encode(images)

    def encode(
        self, images: Tensor, z: Tensor, steps: int = 250, grid: EncodingGrid = "ddim_stride"
    ) -> Encoding:
        r"""Noise of images by the probability-flow ODE run forwards.

        Args:
            images: Images :math:`x_0` in [-1, 1], with shape (B, 3, H, W).
            z: Their codes, with shape (B, D).
            steps: :math:`N_E`.
            grid: "ddim_stride" encodes as the official autoencoder does: timesteps 0, i, 2i, ...,
                the data prediction clipped, the last step to pure noise; 1000 must have a stride i
                for the steps ("ddimN"). "greedy_dim" runs the grid of the published morphing
                scheduler backwards, from timestep 0 to 999, unclipped, as Fast-DiM-ode does.
        """
        if grid not in get_args(EncodingGrid):
            raise ValueError(f"grid={grid!r} must be one of {', '.join(get_args(EncodingGrid))}")
        if grid == "ddim_stride":
            nodes = TimeGrid.ddim_stride(self.schedule, steps, encode=True)
        else:
            nodes = TimeGrid.greedy_dim(self.schedule, steps).reversed()
        solver = DDIM(clip_x0=grid == "ddim_stride")
        with torch.no_grad():
            return encode(self.denoiser, images, z, solver=solver, grid=nodes)

    def decode(self, x_T: Tensor, z: Tensor, steps: int = 20) -> Tensor:
        """Images in [-1, 1] by the autoencoder's own sampler: DDIM, predicted images clipped.

        Args:
            x_T: Noise, with shape (B, 3, H, W).
            z: Codes, with shape (B, D).
            steps: N.
        """
        grid = TimeGrid.ddim_stride(self.schedule, steps)
        rollout = sample(self.denoiser, x_T, z, solver=DDIM(clip_x0=True), grid=grid)
        return rollout.x_0.clamp(-1, 1)
