"""What every option of ``conf/`` can be set to, stated once and applied wherever it is set.

An option is named by the end of its dotted key, and the longest entry of :data:`OPTIONS` that fits
counts: ``gradient.steps`` has its own, and ``steps`` is that of every other. An entry such as
``leaderboard:task.steps`` is that of one task. The same entry is applied to a single run, to each
value of a sweep and to a dry run. A test compares the table with ``conf/``: an option without an
entry fails it.
"""

from typing import get_args

from adjointdeis.detection.detector import Kind as DetectorKind
from adjointdeis.detection.plugged import HIGHER_IS
from adjointdeis.evaluation.policies import IMPOSTOR_POLICIES
from adjointdeis.harness.value_kinds import (
    BELOW_ONE,
    COUNTS,
    DEVICES,
    FACES,
    FLAG,
    FMR,
    MANY,
    MAPPING,
    NAME,
    NAMES,
    NODE,
    NULL,
    PATH,
    PRECISION,
    RATE,
    RUN,
    SEED,
    SHARE,
    SIZE,
    STEPS,
    STRATEGY,
    TEXT,
    Kind,
    one_of,
    real,
    several,
    whole,
)
from adjointdeis.problems import FAMILIES, LOSSES
from synthetic_faces.roles import ROLES


def _all(kind: Kind, names: str) -> dict[str, Kind]:
    """Several options of one kind; those that have a kind of their own follow in the table."""
    return dict.fromkeys(names.split(), kind)


OPTIONS: dict[str, Kind] = {
    **_all(
        PATH,
        "paths.root paths.outputs paths.data data.root folder file directory source destination "
        "outputs recogniser morphs.* task.cells selector weights.*",
    ),
    **_all(
        SHARE,
        "weight bridge eta detection_threshold ema_decay wild reappear augmentation.shift "
        "augmentation.channels gain halftone white gamma_spread noise",
    ),
    **_all(
        MAPPING,
        "detection:task.pairs detection.pairs task.people task.detectors task.weights "
        "task.most_pairs task.truth task.pool task.training task.network task.crop task.head "
        "task.optimizer task.problem",
    ),
    **_all(
        FLAG,
        "force dry_run repeat check_faces measure_gradient write adapt originals train_encoder "
        "texture resize antialias offline",
    ),
    **_all(
        PATH | NULL,
        "root faces pairs data.originals generator perceptual thresholds task.run save_dir info "
        "compare task.published initial",
    ),
    **_all(
        TEXT,
        "logger.csv.name logger.wandb.name csv.version label licence project training fingerprint "
        "function.path landmarker.box",
    ),
    **_all(
        MANY,
        "batch_size decay_every per_sex pairs_per_sex pairs_per_group checkpoint_every samples "
        "identities images_per_identity most_pairs.*",
    ),
    **_all(
        SIZE,
        "size detection_size transform_size image_size patch_size model_channels embed_channels "
        "code_channels embedding_dim",
    ),
    **_all(TEXT | NULL, "paths.id paper_row alignment sha256 process_group_backend id wandb"),
    **_all(
        whole(0, 100_000),
        "optimisation.steps optimisation_steps inner_steps projection_steps first",
    ),
    **_all(
        NODE | NULL,
        ".gradient task.detection augmentation degradation.resize degradations.resize",
    ),
    **_all(STEPS, "sampling_steps encoding_steps last substeps count"),
    **_all(real(above=0, most=1), "decay rtol p zeta"),
    **_all(real(0), "identity_weight ms_ssim_weight identity_difference_weight threshold"),
    **_all(BELOW_ONE, "dropout smoothing print_scan.scale black"),
    **_all(RATE, "lr projection_rate learning_rate"),
    **_all(NAMES, ".name task.name"),
    **_all(MANY | NULL, "limit most_per_person"),
    **_all(FACES, "data.faces data.pairs"),
    **_all(whole(0, 1_000_000), "replicates quality_faces"),
    **_all(SEED, "bootstrap_seed shuffle_seed"),
    **_all(whole(2, 10_000), "blends task.paths"),
    **_all(one_of("x0", "v"), "training.prediction task.prediction"),
    **_all(PRECISION | one_of("auto"), "training.precision task.precision"),
    **_all(real(above=0, most=1e6), "atol minutes"),
    **_all(several(real(), "[0,0,1,1]", count=4), "crop.box box"),
    **_all(MAPPING | NULL, "validation reconstructed"),
    **_all(real(0, 1e6), "weight_decay scale"),
    **_all(real(0, 1e3), "spread blur"),
    **_all(several(whole(1, 1024), "[1,2,3]"), "channel_mult encoder_channel_mult"),
    **_all(real(0, 100), "margin amount"),
    **_all(COUNTS, "drawn_steps network_steps"),
    **_all(whole(1, 10_000), "each drawn_each"),
    "assets.name": NAME,
    "name": NAME | one_of("") | NULL,  # where a row may not be empty, validation says so
    "seed": SEED | NULL,
    "threads": whole(1, 1024) | NULL,
    "paths.run": RUN | NULL,
    "autoencoder": PATH | several(PATH, "[a,b]"),
    "identity": PATH | several(PATH, "[mobilefacenet]"),
    "recognisers": several(PATH, "[arcface.safetensors]", empty=True, once=True),
    "optimisation.batch_size": MANY | one_of("auto"),
    "keep": one_of("last", "best"),
    "z_learning_rate": real(0, 1e6) | NULL,
    "stop_similarity": Kind(
        "a cosine between -1 and 1", lambda v: real(above=-1).accepts(v) and v < 1
    )
    | NULL,
    "betas": several(BELOW_ONE, "[0.5,0.9]", count=2),
    "fmr": FMR,
    "protocol.fmr": several(FMR, "[0.001]", once=True),
    "impostor_policies": several(one_of(*IMPOSTOR_POLICIES), "[all,same-sex]", once=True),
    "grid": one_of("greedy_dim", "ddim_stride"),
    "nfe": whole(0) | NULL,
    "perceptual_weight": real(0) | NULL,
    "gradient.steps": STEPS | NULL,
    "snapshots": whole(1) | NULL,
    "keep_activations": whole(0),
    "budget": TEXT | whole(1) | NULL,
    "gamma": real(),
    "mean": several(real(), "[127.5,127.5,127.5]", count=3) | real(),
    "std": several(real(above=0), "[127.5,127.5,127.5]", count=3) | real(above=0),
    "output": whole(0, 4096) | TEXT,
    "detection_side": whole(16, 100_000) | NULL,
    "accelerator": one_of("cpu", "gpu", "cuda", "mps", "tpu", "auto"),
    "devices": DEVICES,
    "plugins": several(NODE, "[{_target_: ...}]") | NULL,
    "num_nodes": whole(1, 100_000),
    "trainer.precision": PRECISION,
    "strategy": STRATEGY,
    "images": whole(0, 10_000),
    "action": one_of("list", "convert"),
    "policies": several(one_of(*IMPOSTOR_POLICIES), "[all]", once=True),
    "preparations": several(TEXT, "[resize]"),
    "impostors": several(TEXT, "[neutral-smiling]"),
    "probes": several(TEXT, "[source]"),
    "folds": whole(2, 10_000) | NULL,
    "fold": whole(0, 10_000) | NULL,
    "use_folds": several(whole(0, 10_000), "[0]", once=True) | NULL,
    "selectors": several(PATH, "[faceres]") | PATH,
    "clip_norm": real(above=0) | NULL,
    "raise_by": real(-2, 2),
    "steps": whole(1, 100_000_000),
    "learning_rate_steps": whole(1, 100_000_000) | NULL,
    "warmup": whole(0, 100_000_000),
    "render_workers": whole(0, 1024),
    "role": one_of(*ROLES),
    "residual_blocks": whole(1, 1024),
    "attention_resolutions": several(SIZE, "[8]", empty=True),
    "layers": several(whole(1, 1024), "[1,2,2,1]"),
    "widths": several(SIZE, "[24,48,96,160]"),
    "stem_stride": whole(1, 16),
    "rotation": real(0, 180),
    "brightness": real(0, 2),
    "leaderboard:task.steps": several(STEPS, "[5,10]", once=True, empty=True),
    "budgets": several(whole(1, 10**9), "[60,30]", once=True),
    "draws": whole(0, 1000),
    "truth.*": whole(2, 1_000_000),
    "problems": several(one_of(*FAMILIES, "mini", "terrain"), "[gaussian]", once=True),
    "task.losses": several(one_of(*LOSSES), "[reward]", once=True),
    "network_losses": several(one_of(*LOSSES), "[distance]", once=True),
    "calculi": several(one_of("ode", "sde"), "[ode,sde]", once=True),
    "methods": several(TEXT, "[Backprop]", once=True) | NULL,
    "candidates": several(MAPPING, "[{cells: 4}, {cells: 8}]") | NULL,
    "task.seen": several(NAME, "[dim_a]", empty=True, once=True),
    "task.guided": several(NAME, "[exact_fast]", empty=True, once=True),
    "task.only": several(TEXT, "[dim_a]", empty=True, once=True) | NULL,
    "degradations": MAPPING | several(NODE, "[{_target_: ...}]", empty=True),
    "kind": one_of(*get_args(DetectorKind)),
    "higher_is": one_of(*HIGHER_IS),
    "column": whole(0, 1_000_000) | NULL,
    "cells": whole(1, 256),
    "regularisation": real(above=0, most=1e9),
    "shift": real(0, 16_384),
    "quality": whole(1, 95),
    "subsampling": one_of(0, 1, 2),
    "smallest": whole(1, 10**9),
    "largest": whole(2, 10**9),
    "side": SIZE | NULL,
    "share": Kind("a number between 0 and 1", lambda v: RATE.accepts(v) and v < 1),
    "oversampling": whole(1, 64),
    "period": real(1, 16_384),
    "softness": real(1e-3, 1e3),
    "colours": one_of("rgb", "bgr"),
    "layout": one_of("nchw", "nhwc"),
    "score_type": one_of("similarity", "dissimilarity"),
    "gradient.weights": one_of("leaps") | real() | several(real(), "[1,0.5]"),
}
"""The values of an option, by the end of its dotted key."""


def kind_of(key: str, task: str = "") -> Kind | None:
    """The values of an option: those of the longest entry that ends its key; None without one.

    An entry that begins with a dot is of the top; ``morphs.*`` is every key below ``morphs``.

    Args:
        key: The dotted key.
        task: Name of the task that runs, whose entries come first: ``leaderboard:task.steps``.
    """
    parts = key.split(".")
    ends = [".".join(parts[k:]) for k in range(len(parts))]
    below = ".".join([*parts[-2:-1], "*"])
    names = [*(f"{task}:{end}" for end in ends), f".{key}", *ends, below]
    return next((OPTIONS[name] for name in names if name in OPTIONS), None)
