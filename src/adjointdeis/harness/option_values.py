"""What every option of ``conf/`` can be set to, stated once and applied wherever it is set.

First the kinds of values, each with its words for a message, then the options. One is named by the
end of its dotted key, and the longest entry of :data:`OPTIONS` that fits counts: ``gradient.steps``
has its own, and ``steps`` is that of every other. An entry such as ``leaderboard:task.steps`` is
that of one task. The same entry is applied to a single run, to each value of a sweep and to a dry
run. A test compares the table with ``conf/``: an option without an entry fails it.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from adjointdeis.detection.detector import Kind as DetectorKind
from adjointdeis.detection.plugged import HIGHER_IS
from adjointdeis.evaluation.policies import IMPOSTOR_POLICIES
from adjointdeis.problems import FAMILIES, LOSSES
from adjointdeis.texts import is_file_name, printable
from synthetic_faces.roles import ROLES

_SHOWN = 60


@dataclass(frozen=True)
class Kind:
    """The values that an option takes.

    Attributes:
        text: What is expected, for the message.
        accepts: Whether a plain value is one of them.
    """

    text: str
    accepts: Callable[[Any], bool]

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(f"{self.text}, or {other.text}", lambda v: self.accepts(v) or other.accepts(v))


def shown(value: Any) -> str:
    """A value as a message has it: quoted where it is a text, on one line, cut where it is long."""
    text = printable(repr(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(least: int, most: int | None = None) -> Kind:
    """A whole number in a closed range."""
    upper = "or more" if most is None else f"or more, at most {most}"
    return Kind(
        f"a whole number, {least} {upper}",
        lambda v: _is_whole(v) and least <= v and (most is None or v <= most),
    )


def real(least: float = -math.inf, most: float = math.inf, *, above: float | None = None) -> Kind:
    """A finite number in a closed range, or above a bound that it may not have."""
    if above is not None:
        text = f"above {above:g}" + (f" and at most {most:g}" if most < math.inf else "")
    elif least == -math.inf:
        text = "finite" if most == math.inf else f"at most {most:g}"
    else:
        text = f"{least:g} or more" if most == math.inf else f"between {least:g} and {most:g}"

    def accepts(value: Any) -> bool:
        # A whole number beyond the largest float is compared as the whole number that it is.
        number = _is_whole(value) or (isinstance(value, float) and math.isfinite(value))
        return number and abs(value) < 1e300 and (
            value > above if above is not None else least <= value
        ) and value <= most  # fmt: skip

    return Kind(f"a number, {text}", accepts)


def one_of(*values: Any) -> Kind:
    """One of a few values, of their very types: 1 is not true."""
    words = [str(v) for v in values]
    return Kind(
        " or ".join(words) if len(words) < 3 else "one of " + ", ".join(words),
        lambda v: any(v == known and type(v) is type(known) for known in values),
    )


def several(
    kind: Kind, example: str, *, empty: bool = False, count: int | None = None, once: bool = False
) -> Kind:
    """A list whose every entry is of a kind, each once where that is asked for."""
    length = "each once, " if once else "" if count is None else f"{count} of "

    def accepts(value: Any) -> bool:
        if not isinstance(value, list) or not (empty or value) or not all(map(kind.accepts, value)):
            return False
        if once and len(set(map(str, value))) < len(value):
            return False
        return count is None or len(value) == count

    return Kind(f"a list such as {example}: {length}{kind.text}", accepts)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 4096 and "\0" not in value


def _is_path(value: Any) -> bool:
    if isinstance(value, Path):
        value = str(value)
    if not _is_text(value) or not value.strip() or value == "???" or value.startswith("~"):
        return False
    return all(len(part.encode(errors="replace")) <= 255 for part in value.split(os.sep))


def _is_run(value: Any) -> bool:
    # A run sets its folder aside as a whole, and locks it from beside: neither the root of a file
    # system nor a folder around the one where the program was started can be that.
    if not _is_path(value):
        return False
    run = Path(os.path.abspath(value))
    return run.name != "" and run not in Path(os.getcwd()).parents


def _is_strategy(value: Any) -> bool:
    if value == "auto" or not _is_text(value):
        return value == "auto"
    from lightning.pytorch.strategies import StrategyRegistry  # takes seconds, and is rarely asked

    return value in StrategyRegistry.available_strategies()


NULL = Kind("null", lambda v: v is None)
FLAG = Kind("true or false", lambda v: isinstance(v, bool))
NODE = Kind("a class with its arguments", lambda v: isinstance(v, dict) and "_target_" in v)
MAPPING = Kind("its own keys, such as those of its group", lambda v: isinstance(v, dict))
TEXT = Kind("a text of at most 4096 characters", lambda v: _is_text(v))
NAME = Kind(
    "a folder name: letters, digits, - _ . and the like",
    lambda v: _is_text(v) and is_file_name(v),
)
NAMES = Kind(
    "a folder name, or several with / between, none of them .. or hidden",
    lambda v: _is_text(v) and is_file_name(v, 8),
)
PATH = Kind("the path of a file or folder, ~ written out", _is_path)
FACES = Kind("a path, ~ written out, or mini; data.limit takes fewer pairs", _is_path)
SHARE = real(0, 1)
RATE = real(above=0)
STEPS = whole(1, 100_000)
SIZE = whole(1, 16_384)
MANY = whole(1, 1_000_000)
COUNTS = several(STEPS, "[5,10]", once=True)
BELOW_ONE = Kind("a share below 1", lambda v: SHARE.accepts(v) and v < 1)
FMR = Kind(
    "shares between 0 and 1, such as 0.001",
    lambda v: isinstance(v, float) and SHARE.accepts(v) and 0 < v < 1,
)
SEED = whole(0, 2**32 - 1)
PRECISION = one_of(
    *("32-true", "64-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"),
    *("transformer-engine", "transformer-engine-float16", "16", "bf16", "32", "64"),
    *(16, 32, 64),
)
DEVICES = (
    Kind("-1 for all", lambda v: v in (-1, "-1") and not isinstance(v, bool))
    | whole(1, 4096)
    | one_of("auto")
    | several(whole(0, 4096), "[0,1]")
    | Kind(
        "their numbers as text",
        lambda v: _is_text(v) and bool(v) and all(n.strip().isdigit() for n in v.split(",")),
    )
)
RUN = Kind(
    "the path of a folder, not the root of a file system nor a folder around the working one",
    _is_run,
)
STRATEGY = Kind("auto or a strategy of Lightning, such as ddp (trainer=ddp)", _is_strategy)


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
