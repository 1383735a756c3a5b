"""A finished run as the reports see it: its result, its scores, and which rows are the headline."""

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adjointdeis.evaluation import (
    WORST_CASE,
    EvaluationError,
    MorphScores,
    ScoreTable,
    ThresholdRecord,
    group_table,
    read_scores,
)
from adjointdeis.reporting.errors import ReportError
from adjointdeis.reporting.schema import Result, read_result, threshold_record
from adjointdeis.reporting.text import IMPOSTORS, share
from adjointdeis.texts import printable

PROBE_ORDER = ("other", "source")
# How papers write the names that configurations spell in lower case.
KNOWN = {
    "adaface": "AdaFace",
    "arcface": "ArcFace",
    "elasticface": "ElasticFace",
    "dlib": "dlib ResNet",
}
WRAP = 26
# `AdjointDEIS(order=1, steps=20), DDIM` is `AdjointDEIS, DDIM`; `AdjointDEIS-1 (ODE)` stays itself.
_ARGUMENTS = re.compile(r"(?<=\w)\([^()]*\)")
HEADLINE_VARIANTS = ("MMPMR", "MinMax")


@dataclass(frozen=True, order=True)
class EvaluationSetting:
    """What a rate was measured under; two rates compare only where all of it is the same.

    Args:
        probe: Against which image of a subject: source, or another one.
        impostors: Policy of the impostors that set the threshold.
        variant: MMPMR or a relative of it.
        fmr: Target false match rate, a share.
    """

    probe: str
    impostors: str
    variant: str
    fmr: float

    @property
    def labels(self) -> tuple[tuple[str, str], ...]:
        """(name, value) of each setting, as a table prints them above its rates."""
        return (
            ("Probe", self.probe),
            ("Impostors", IMPOSTORS.get(self.impostors, self.impostors)),
            ("Variant", self.variant),
            ("FMR target", share(self.fmr)),
        )


@dataclass(frozen=True, eq=False)
class Run:
    """One run directory.

    Attributes:
        directory: where the paths of the result start.
        result: `result.json`, validated.
    """

    directory: Path
    result: Result

    @classmethod
    def read(cls, directory: Path | str) -> "Run":
        """Reads `result.json`; the scores are read when first asked for."""
        return cls(Path(directory), read_result(directory))

    @cached_property
    def scores(self) -> ScoreTable:
        """The comparison scores behind the rows.

        Raises:
            ReportError: when the file that the result names is absent or malformed.
        """
        try:
            return read_scores(self.path(self.result["scores"]))
        except EvaluationError as error:
            raise ReportError(f"scores: {error}") from None

    @property
    def attacks(self) -> list[str]:
        """Attacks in the order of the result; `worst-case` last if it has rows."""
        names = list(self.result["attacks"])
        scored = {row["attack"] for row in self.result["rows"]}
        if WORST_CASE in scored and WORST_CASE not in names:
            names.append(WORST_CASE)
        return names

    @property
    def systems(self) -> list[str]:
        """Recognisers that have rows, in the order of the result."""
        scored = {row["system"] for row in self.result["rows"]} or set(self.result["systems"])
        return [name for name in self.result["systems"] if name in scored]

    @property
    def profile(self) -> str:
        """`mini` or `paper` assets; `mini` unless the run states otherwise."""
        return str(self.result["run"].get("profile", "mini"))

    @property
    def degradation(self) -> str | None:
        """What documents went through before they were judged; None for nothing."""
        return self.result["run"].get("degradation")

    def path(self, relative: str) -> Path:
        """A path of the result on this machine.

        Raises:
            ReportError: it leaves the run directory, as by a symbolic link: a stranger's run must
                not put other files of this machine into a report.
        """
        path = self.directory / relative
        if not path.resolve().is_relative_to(self.directory.resolve()):
            raise ReportError(f"{path}: leaves the run directory; copy the file into it")
        return path

    def guided(self, attack: str, system: str) -> bool:
        """Whether a recogniser guided an attack, which makes it a white box there."""
        guides = self.result["attacks"].get(attack, {}).get("guides") or {}
        return self.result["systems"][system].get("fingerprint") in guides.values()

    def attack_label(self, name: str) -> str:
        """The attack's printed name."""
        if name == WORST_CASE and name not in self.result["attacks"]:
            return "worst-case bound"
        return printable(self.result["attacks"][name]["label"])

    @cached_property
    def _short(self) -> dict[str, str]:
        """Labels without the arguments of what they name, where that keeps them apart, wrapped."""
        full = {name: self.attack_label(name) for name in self.attacks}
        bare = {name: _ARGUMENTS.sub("", label) for name, label in full.items()}
        return {
            name: textwrap.fill(
                bare[name] if len(label) > WRAP and _only(bare, name) else label, WRAP
            )
            for name, label in full.items()
        }

    def short_label(self, name: str) -> str:
        """The attack's name in a plot, in lines of at most `WRAP` characters where words allow."""
        return self._short[name]

    @property
    def label_lines(self) -> int:
        """Lines of the tallest `short_label`: direct labels must stand that far apart."""
        return max((label.count("\n") + 1 for label in self._short.values()), default=1)

    def system_label(self, name: str) -> str:
        """The recogniser's printed name."""
        label = self.result["systems"][name]["label"]
        return printable(KNOWN.get(name, label) if label == name else label)

    @cached_property
    def _index(self) -> dict[tuple[str, str, EvaluationSetting], dict[str, Any]]:
        return {(row["attack"], row["system"], condition(row)): row for row in self.result["rows"]}

    def row(self, attack: str, system: str, at: EvaluationSetting) -> dict[str, Any] | None:
        """One row of the results, or None where there is none.

        Args:
            attack: Name of the attack in the run.
            system: Name of the recogniser.
            at: Variant, operating point and probes.
        """
        return self._index.get((attack, system, at))

    @cached_property
    def conditions(self) -> list[EvaluationSetting]:
        """Every condition that has a row, in order of first appearance."""
        return list(dict.fromkeys(condition(row) for row in self.result["rows"]))

    @cached_property
    def headline(self) -> list[EvaluationSetting]:
        """One condition per probe policy: the other image first, then the source image.

        Impostor policy `all` and FMR 0.1% where present, for these are what papers mostly mean;
        MMPMR, or MinMax where subjects have several probes.
        """
        found = []
        policies = {c.probe for c in self.conditions}
        for probe in (*PROBE_ORDER, *sorted(policies - set(PROBE_ORDER))):
            own = [c for c in self.conditions if c.probe == probe]
            own = [c for c in own if c.variant in HEADLINE_VARIANTS] or own
            if own:
                found.append(min(own, key=lambda c: (c.impostors != "all", abs(c.fmr - 0.001))))
        return found

    def groups(self, attack: str, system: str, probe: str) -> MorphScores | None:
        """Scores of one attack, morph by morph, or None where nothing was scored.

        Args:
            attack: Name of the attack in the run.
            system: Name of the recogniser.
            probe: Which photographs the morphs were compared with.
        """
        try:
            return group_table(self.scores, attack=attack, system=system, probe_policy=probe)
        except EvaluationError:
            return None

    def oriented_tau(self, system: str, at: EvaluationSetting) -> float | None:
        """The threshold of a system for scores turned so that larger means more alike."""
        for row in self.result["rows"]:
            if row["system"] == system and condition(row) == at:
                return -row["tau"] if row["score_type"] == "dissimilarity" else row["tau"]
        # Without morphs there are no rows, and the thresholds stand for themselves.
        for record in self.thresholds if not self.result["rows"] else ():
            if (record.model, record.target_fmr) == (system, at.fmr):
                return record.oriented
        return None

    def verdicts(self, attack: str, system: str, at: EvaluationSetting) -> dict[str, str]:
        """Per morph: `yes` if it matches all its subjects, `no`, or `failed`.

        Args:
            attack: Of the run.
            system: The recogniser.
            at: Probe, impostors, variant and FMR of the threshold.
        """
        groups, tau = self.groups(attack, system, at.probe), self.oriented_tau(system, at)
        if groups is None or tau is None:
            return {}
        return {
            str(morph): "failed" if np.isneginf(score) else "yes" if score > tau else "no"
            for morph, score in zip(groups.morphs, groups.min_of_best, strict=True)
        }

    @cached_property
    def thresholds(self) -> list[ThresholdRecord]:
        """The threshold records."""
        return [threshold_record(values) for values in self.result["thresholds"]]


def condition(row: Mapping[str, Any]) -> EvaluationSetting:
    """The condition of a row of `evaluate`."""
    return EvaluationSetting(
        row["probe_policy"], row["impostor_policy"], row["variant"], row["fmr_target"]
    )


def _only(labels: Mapping[str, str], name: str) -> bool:
    return list(labels.values()).count(labels[name]) == 1
