"""Settings of the FRLL landmark experiment, read from a composed configuration."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adjointdeis.morphing.landmark import VARIANTS

TEMPLATES = ("auto", "tem", "dlib68")


@dataclass(frozen=True)
class Config:
    """Settings of the experiment.

    Attributes:
        root: FRLL's folder or zip archive (`data.root`).
        run_dir: Where everything is written; never inside of the repository's tracked folders.
        pairs_per_group: Pairs of each gender.
        pairs_file: A pair list to use instead of the most-similar rule; must be neutral images.
        exclude_false_matches: Leave out pairs whose own photographs match each other.
        variants: Styles of `LandmarkMorph`.
        template: Landmarks: `tem` (FRLL's 189), `dlib68`, or `auto` (each style's own).
        weight: Share of the second image.
        fmr: Target false match rates, shares.
        probe_policies: `source` and/or `other` (the smiling photograph).
        impostor_policies: `all`, `same-sex`, `same-sex-and-group`.
        size: Side of the aligned image.
        transform_size: Side of the aligner's intermediate warp; 4096 is the official recipe.
        detection_side: Photographs are shrunk to this side for detection; None does not.
        replicates: Of the subject bootstrap; 0 leaves it out.
        seed: Of the bootstrap.
    """

    root: str
    run_dir: str
    pairs_per_group: int = 50
    pairs_file: str | None = None
    exclude_false_matches: bool = True
    variants: tuple[str, ...] = VARIANTS
    template: str = "auto"
    weight: float = 0.5
    fmr: tuple[float, ...] = (0.001,)
    probe_policies: tuple[str, ...] = ("source", "other")
    impostor_policies: tuple[str, ...] = ("all", "same-sex", "same-sex-and-group")
    size: int = 256
    transform_size: int = 1024
    detection_side: int | None = 640
    replicates: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise ValueError(
                f"task.template: expected one of {', '.join(TEMPLATES)}, got {self.template!r}"
            )
        wrong = [v for v in self.variants if v not in VARIANTS]
        if wrong or not self.variants:
            raise ValueError(
                f"task.variants: expected some of {', '.join(VARIANTS)}, got {wrong or 'none'}"
            )

    @classmethod
    def from_mapping(cls, cfg: Mapping[str, Any]) -> "Config":
        """From a composed configuration: `data.root`, `paths.run`, `protocol` and `task`.

        Raises:
            ValueError: Unknown key of `task` (with the nearest valid one), or no `data.root`.
        """
        section = {k: v for k, v in (cfg.get("task") or {}).items() if k != "_target_"}
        protocol = dict(cfg.get("protocol") or {})
        for key in set(section) - set(TASK_KEYS):
            near = difflib.get_close_matches(key, TASK_KEYS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"valid are {', '.join(TASK_KEYS)}"
            raise ValueError(f"task.{key}: unknown key; {hint}")
        root = (cfg.get("data") or {}).get("root")
        if not root or root == "???":
            raise ValueError(
                "data.root: expected the folder of the Face Research Lab London Set "
                "(doi:10.6084/m9.figshare.5047666), for example data.root=/data/frll"
            )
        section |= {
            k: protocol[k] for k in ("fmr", "impostor_policies", "replicates") if k in protocol
        }
        section["seed"] = int(protocol.get("bootstrap_seed") or 0)
        for key in ("variants", "probe_policies", "impostor_policies", "fmr"):
            if key in section:
                section[key] = tuple(section[key])
        return cls(root=str(root), run_dir=str(cfg["paths"]["run"]), **section)


TASK_KEYS = tuple(
    field.name
    for field in dataclasses.fields(Config)
    if field.name not in ("root", "run_dir", "fmr", "impostor_policies", "replicates", "seed")
)
