"""A tiny profile with random weights, a folder of drawn faces, and configurations that use them."""

import functools
import json
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adjointdeis.evaluation import ThresholdRecord
from adjointdeis.faces.networks import (
    DiffAE,
    DiffAEConfig,
    IResNet,
    IResNetConfig,
    StyleGAN2,
    StyleGAN2Config,
)
from adjointdeis.faces.recognisers.crop import FaceCrop
from adjointdeis.faces.weights import fingerprint, save_network
from adjointdeis.harness.choices import register_options

ROOT = Path(__file__).parents[1]
SIZE = 16
PAIRS = ("001_002", "003_004", "001_003")
ROWS = ("dim_a", "adjoint_deis_ode", "adjoint_deis_sde", "exact")
STEPS, ENCODING, OPTIMISATION = 4, 10, 2


def draw_face(seed: int, smiling: bool) -> np.ndarray:
    """An oval with eyes and a mouth; enough for networks that know nothing."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) * 2 - 1
    image = np.full((SIZE, SIZE, 3), 90.0)
    image[(x / rng.uniform(0.5, 0.8)) ** 2 + (y / 0.9) ** 2 < 1] = rng.uniform(120, 230, 3)
    gap = rng.uniform(0.2, 0.4)
    image[((abs(x) - gap) ** 2 + (y + 0.25) ** 2) < 0.02] = rng.uniform(0, 90, 3)
    curve = 1.0 if smiling else 0.0  # less is no pixel at this size, and both captures one picture
    image[(abs(y - 0.5 + curve * x**2) < 0.1) & (abs(x) < 0.4)] = (150, 40, 40)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def draw_landmarks(seed: int) -> np.ndarray:
    """189 points on the drawn face, the same structure for every one: rings, shifted and scaled."""
    rng = np.random.default_rng(seed + 100)
    angle = np.arange(189) * 2.4
    radius = 6.5 * np.sqrt((np.arange(189) + 1) / 190)
    ring = np.column_stack([np.cos(angle) * rng.uniform(0.8, 1), np.sin(angle)]) * radius[:, None]
    return ring + (SIZE - 1) / 2 + rng.normal(0, 0.3, 2)


def write_landmarks(faces: Path) -> None:
    """`landmarks.npz` of a folder of drawn faces."""
    stems = sorted(path.stem for path in faces.glob("*.png"))
    points = np.stack([draw_landmarks(int(stem[:3])) for stem in stems]).astype(np.float32)
    np.savez(faces / "landmarks.npz", stems=np.array(stems), points=points, size=np.int64(SIZE))


def excite(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights everywhere: official initialisations have zeros that would hide z."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                scale = 0.8 / weight[0].numel() ** 0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return network


def small_autoencoder() -> DiffAEConfig:
    return DiffAEConfig(
        image_size=SIZE,
        model_channels=8,
        channel_mult=(1, 2),
        encoder_channel_mult=(1, 2),
        residual_blocks=1,
        attention_resolutions=(),
        embed_channels=16,
        code_channels=8,
        patch_size=2,
        dropout=0.0,
    )


def write_profile(root: Path) -> None:
    """Weights, thresholds and manifest, as `experiments/mini/publish.py` writes them."""
    licence, files, records = "none (random weights)", {}, []
    network = excite(DiffAE(small_autoencoder()), 1)
    sha256 = save_network(network, root / "diffae.safetensors", dtype=torch.float32)
    files["diffae.safetensors"] = {"sha256": sha256, "licence": licence, "prediction": "v"}
    generator = StyleGAN2(StyleGAN2Config(SIZE, 8, 8, 2, channel_base=64, channel_max=8))
    sha256 = save_network(excite(generator, 9), root / "stylegan2.safetensors", dtype=torch.float32)
    files["stylegan2.safetensors"] = {"sha256": sha256, "licence": licence}
    for seed, name in enumerate(("guide", "arcface", "adaface"), 2):
        config = IResNetConfig(SIZE, (1, 1, 1, 1), (8, 8, 8, 8), embedding_dim=8)
        network = excite(IResNet(config), seed)
        sha256 = save_network(network, root / f"{name}.safetensors", dtype=torch.float32)
        crop = {"size": SIZE, "box": [0.0, 0.0, 1.0, 1.0]}
        entry = {"sha256": sha256, "licence": licence, "name": name, "label": name, "crop": crop}
        files[f"{name}.safetensors"] = entry
        records.append(
            ThresholdRecord(
                value=0.5,
                score_type="similarity",
                rule="conservative order statistic",
                target_fmr=0.001,
                realised_fmr=0.001,
                k=1,
                n=1000,
                impostor_policy="all",
                model=name,
                model_fingerprint=sha256,
                alignment=FaceCrop(**crop).label,
            ).to_dict()
        )
    (root / "thresholds.json").write_text(json.dumps({"records": records}))
    files["thresholds.json"] = {"sha256": fingerprint(root / "thresholds.json")}
    (root / "manifest.json").write_text(json.dumps({"profile": "tiny", "files": files}))


def overrides(
    tiny: Path,
    run: Path | None,
    *more: str,
    root: Path | None = None,
    rows: tuple[str, ...] = ROWS,
    replicates: int = 20,
) -> list[str]:
    """Command line of a run of some rows, in seconds; `root` holds its caches."""
    lines = [
        "+experiment=table1_first",
        "judges=none",
        f"paths.root={root or tiny}",
        f"assets.root={tiny}/profile",
        "assets.recognisers=[arcface.safetensors,adaface.safetensors]",
        f"data.faces={tiny}/faces",
        f"data.pairs={tiny}/pairs.csv",
        "data.limit=null",
        f"optimisation.steps={OPTIMISATION}",
        "optimisation.batch_size=2",
        f"protocol.replicates={replicates}",
    ]
    for row in rows:
        lines += [f"rows.{row}.sampling_steps={STEPS}", f"rows.{row}.encoding_steps={ENCODING}"]
    # On so few steps these gradients are thousands of times too long: at the paper's rate,
    # rounding would decide where the latents end.
    rates = {"adjoint_deis_ode": "1e-6", "adjoint_deis_sde": "1e-9"}
    lines += [f"rows.{row}.optimizer.lr={rate}" for row, rate in rates.items() if row in rows]
    lines += [f"~rows.{row}" for row in ROWS if row not in rows]
    if run is not None:
        lines.append(f"paths.run={run}")
    return [*lines, *more]


@functools.cache
def _composed(arguments: tuple[str, ...]) -> DictConfig:
    register_options(ROOT / "conf")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", list(arguments))


def composed(arguments: list[str]) -> DictConfig:
    """What run.py would hand to `launch`.

    Groups are composed once for all tests; plain values are set on a copy, as Hydra sets them.
    """
    plain = [a for a in arguments if re.match(r"[\w.]+\.\w+=", a) and not a.startswith("hydra.")]
    cfg = _composed(tuple(a for a in arguments if a not in plain)).copy()
    try:
        for given in OverridesParser.create().parse_overrides(plain):
            OmegaConf.update(cfg, given.key_or_group, given.value(), merge=True)
    except OmegaConfBaseException:  # of what a later argument deletes: the order counts
        return _composed(tuple(arguments)).copy()
    return cfg


def command_line(arguments: list[str], plots: bool = True) -> list[str]:
    """The program, as a user starts it; or without the plots of its report."""
    program = ROOT / ("run.py" if plots else "tests/without_plots.py")
    return [sys.executable, str(program), *arguments]


def counting_task(cfg: DictConfig) -> dict[str, float]:
    """A task that leaves one line a run, for tests of how runs are launched."""
    with (Path(cfg.paths.run) / "calls.txt").open("a") as file:
        shared = np.random.rand()  # noqa: NPY002 - the generator that seeds reach
        file.write(f"{cfg.seed} {torch.rand(()).item():.9f} {shared:.9f}\n")
    return {"objective": 1.5}


def failing_task(cfg: DictConfig) -> None:
    """A task that cannot do its work."""
    raise ValueError("the file x.png is no image; give another")


def flaky_task(cfg: DictConfig) -> dict[str, float]:
    """A task of a sweep: seed 4 fails as long as a file `broken` lies beside the outputs, seed 8
    takes the whole process down as long as `deadly` does."""
    counting_task(cfg)
    root = Path(cfg.paths.root)
    if cfg.seed == 4 and (root / "broken").exists():
        raise ValueError("the probe of subject 4 is unreadable")
    if cfg.seed == 8 and (root / "deadly").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    result = {"objective": float(cfg.seed)}
    (Path(cfg.paths.run) / "result.json").write_text(json.dumps(result))
    return result
