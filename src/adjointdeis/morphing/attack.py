"""What an attack is to the program that runs it: settings, a price, and work on a batch of pairs.

An attack is a frozen description.  :meth:`Attack.begin` turns it and a batch of sources into
:class:`Work`, which is asked for :attr:`Attack.steps` steps and then to finish.  What an attack
works with (networks, landmarks, encodings) comes from the :class:`Workbench`; an attack lists it in
``resources``, and nothing else has to be there.

A new attack is one file: a dataclass that derives from :class:`Attack`, and its work.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from adjointdeis.faces.datasets.pairs import MorphPair
from adjointdeis.faces.image_io import AnyPath
from adjointdeis.faces.tensors import to_tensor
from adjointdeis.gradients.cost import Cost
from adjointdeis.morphing.autoencoder import Autoencoder, EncodingGrid
from adjointdeis.morphing.identity_loss import IdentityDistances, IdentityLoss

Template = Literal["dlib68", "tem"]
Objective = Callable[[Tensor], Tensor]

_REPORTED = (
    "solver",
    "grid",
    "sampling_steps",
    "encoding_steps",
    "optimisation_steps",
    "gradient",
    "adjoint_steps",
    "states",
    "learning_rate",
    "z_learning_rate",
    "optimizer",
    "keep",
)
_NAMES = ("name", "label", "paper_row")


@dataclass(frozen=True)
class EncodedFace:
    """A batch of encoded images: codes (B, D), noise (B, 3, H, W), evaluations per image."""

    z: Tensor
    x_T: Tensor
    nfe: int


class Encoder(Protocol):
    """Encodes images, from a cache where it can."""

    def __call__(
        self,
        images: np.ndarray,
        device: torch.device,
        steps: int,
        grid: EncodingGrid = "ddim_stride",
        codes_of: np.ndarray | None = None,
    ) -> EncodedFace:
        """Codes and noises of images (B, H, W, 3) uint8.

        Args:
            images: What the noise is found for.
            device: Where the result lives.
            steps: Evaluations of the probability-flow ODE.
            grid: Its grid, see :meth:`Autoencoder.encode`.
            codes_of: Images whose codes condition the ODE; ``images`` by default.
        """
        ...


class Landmarks(Protocol):
    """Finds landmarks on aligned faces."""

    def __call__(self, path: AnyPath, image: np.ndarray, template: Template) -> np.ndarray:
        """Points (K, 2) of a face, (x, y) in pixels, pixel centres at integers.

        Raises:
            NoFaceError: There is none for this image; the message names it.
        """
        ...


@dataclass(frozen=True, eq=False)
class Sources:
    """A batch of pairs and their aligned images.

    Attributes:
        pairs: B pairs.
        images_a, images_b: First and second images, (B, H, W, 3) uint8.
        paths_a, paths_b: The files that they were read from.
    """

    pairs: tuple[MorphPair, ...]
    images_a: np.ndarray
    images_b: np.ndarray
    paths_a: tuple[AnyPath, ...]
    paths_b: tuple[AnyPath, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Both sides in [-1, 1], with shape (B, 3, H, W)."""
        return to_tensor(self.images_a).to(device), to_tensor(self.images_b).to(device)


@dataclass(frozen=True, eq=False)
class Workbench:
    """What attacks work with.

    Attributes:
        device: Where tensors live.
        resources: Networks and the like by name. Ours: "autoencoder" (:class:`Autoencoder`),
            "encoder" (:class:`Encoder`), "identity" (what offers ``features`` and ``parts``),
            "generator" (:class:`StyleGenerator`), "landmarks" (:class:`Landmarks`).
        seed: Of everything random; each pair derives its own from it.
        measure_gradient: Compare an approximate gradient with the exact one at the first step.
    """

    device: torch.device
    resources: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    measure_gradient: bool = False

    def resource(self, name: str) -> Any:
        """A resource that the attack lists.

        Raises:
            ValueError: It is not there.
        """
        if name not in self.resources:
            raise ValueError(
                f"this attack works with {name!r}, which is not there; list it in the attack's "
                f"`resources`. There are: {', '.join(self.resources) or 'none'}"
            )
        return self.resources[name]

    @property
    def autoencoder(self) -> Autoencoder:
        """The diffusion autoencoder."""
        return self.resource("autoencoder")

    @property
    def encoder(self) -> Encoder:
        """Encodes images for the autoencoder."""
        return self.resource("encoder")

    def identity_loss(self) -> IdentityLoss:
        """The identity loss of the resource "identity"."""
        guides = self.resource("identity")
        return IdentityLoss(guides.features, guides.parts)

    def against(self, sources: Sources) -> Callable[..., IdentityDistances]:
        """Identity distances of images in [-1, 1] to their two sources, differentiably.

        The sources' features are computed once. The function takes the images of all pairs, or
        those of some and their positions in the batch.
        """
        loss = self.identity_loss()
        with torch.no_grad():
            v_a, v_b = (loss.features(side) for side in sources.tensors(self.device))

        def distances(images: Tensor, rows: Tensor | None = None) -> IdentityDistances:
            if rows is None:
                return loss(images, v_a, v_b)
            return loss(images, v_a[rows], v_b[rows])

        return distances


@dataclass
class MorphCost(Cost):
    """What the morph of a pair costs; where pairs of a batch differ, that of the costliest.

    Of :class:`adjointdeis.gradients.cost.Cost` it has the sampling and its gradients. Beside them:

    Attributes:
        encode: Network evaluations of encoding, both sources of a pair being one batch, as the
            paper counts them.
        loss_gradients: Gradients of the identity loss alone.
        loss_evaluations: Evaluations of the identity loss without a gradient.
    """

    encode: int = 0
    loss_gradients: int = 0
    loss_evaluations: int = 0

    def counters(self) -> dict[str, int]:
        """What records and results hold."""
        return {
            "encode": self.encode,
            "forward": self.nfe_forward,
            "backward": self.nfe_backward,
            "vjps": self.vjps,
            "loss_gradients": self.loss_gradients,
        }


@dataclass(frozen=True, eq=False)
class Progress:
    """What one step saw.

    Attributes:
        loss: With shape (B).
        gradient_norm: With shape (B), or None where the step has no gradient.
    """

    loss: Tensor
    gradient_norm: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Morphs:
    """The morphs of a batch.

    Attributes:
        images: With shape (B, 3, H, W) in [-1, 1]; clipped when written.
        cost: What they cost.
        failed: Reason by position in the batch, of pairs without a morph.
        details: Per pair, what its record says beside loss and cost.
    """

    images: Tensor
    cost: MorphCost
    failed: dict[int, str] = field(default_factory=dict)
    details: Sequence[dict[str, Any]] = ()


class Work(Protocol):
    """A batch of pairs under way."""

    def step(self) -> Progress:
        """The next of the attack's steps."""
        ...

    def finish(self) -> Morphs:
        """The morphs, after all steps."""
        ...


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """One row of a morphing table.

    Args:
        name: Identifier, used as a folder name.
        label: Name in printed tables.
        paper_row: Name of the paper's row that this one corresponds to, or None.
    """

    name: str
    label: str = ""
    paper_row: str | None = None

    resources: ClassVar[frozenset[str]] = frozenset()
    guided: ClassVar[bool] = False
    """Whether a gradient through the sampler moves its latents."""

    def __post_init__(self) -> None:
        if not self.label:
            object.__setattr__(self, "label", self._derived_label())

    def _derived_label(self) -> str:
        return self.name

    @property
    def steps(self) -> int:
        """How many steps a batch takes before it is finished; 0 where nothing is iterated."""
        return 0

    @property
    def nfe_paper(self) -> int | None:
        """Network evaluations as the paper counts them; None for attacks without a network."""
        return None

    def expected_cost(self) -> MorphCost:
        """What a pair is expected to cost; nothing by default."""
        return MorphCost()

    def device_cost(self) -> MorphCost:
        """What a device does for a pair, beside what the paper counts: both sources are encoded."""
        cost = self.expected_cost()
        return replace(cost, encode=2 * cost.encode)

    @property
    def stored_latents(self) -> int:
        """Latents of a pair that are held at one time for its gradient."""
        return 0

    def image_size(self, bench: Workbench) -> int | None:
        """Side of the images that it takes; None where any will do."""
        return None

    def check(self, bench: Workbench) -> None:
        """Raises where the resources at hand cannot do what the settings ask."""
        return

    @abstractmethod
    def begin(self, sources: Sources, bench: Workbench) -> Work:
        """Takes up a batch."""

    def modules(self) -> tuple[nn.Module, ...]:
        """Networks of the attack's own, to be moved to the device that it runs on."""
        return ()

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of the attack's own files by name: a morph depends on them."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Everything that determines the attack's morphs, as plain values, for report and resume.

        The keys that reports know are always there, None where they do not apply.
        """
        settings: dict[str, Any] = dict.fromkeys(_REPORTED)
        settings["method"] = type(self).__name__
        for entry in fields(self):
            if entry.name not in _NAMES:
                settings[entry.name] = _plain(getattr(self, entry.name))
        return settings

    def notes(self) -> list[str]:
        """What a reader of its numbers has to know beside its settings."""
        return []


def optimizer_name(factory: Any) -> str | None:
    """Class name of an optimiser factory such as ``partial(torch.optim.SGD, lr=0.1)``."""
    return getattr(getattr(factory, "func", factory), "__name__", None)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, partial):
        arguments = ", ".join(f"{key}={_plain(v)!r}" for key, v in sorted(value.keywords.items()))
        return f"{optimizer_name(value)}({arguments})"
    return repr(value)
