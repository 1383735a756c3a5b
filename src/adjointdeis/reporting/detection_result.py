"""Scores of detectors with their rows and the run that they are of, as reports see them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from adjointdeis.evaluation import (
    DetectionScores,
    DetectionStudy,
    EvaluationError,
    ScoreTable,
    hardening_rows,
    matrix_rows,
    read_detection,
)
from adjointdeis.evaluation.detection import WORST
from adjointdeis.evaluation.detection_matrix import DETECTION, UNDEGRADED, DetectorSetting
from adjointdeis.evaluation.detection_tables import first_of, headline_of
from adjointdeis.evaluation.passing import passing
from adjointdeis.evaluation.storage import write_json
from adjointdeis.reporting.errors import ReportError
from adjointdeis.reporting.run import EvaluationSetting, Run
from adjointdeis.reporting.schema import problems_of, read_degraded
from adjointdeis.texts import printable

ROWS = "detection_rows.json"
REPLICATES = 500
"""Of the bootstrap in a run's report, whose matrix has hundreds of settings."""
BSCER = 0.1
"""Share of bona fide images that may be flagged where one operating point stands for a detector."""
Row = Mapping[str, Any]


class _Candidate(TypedDict):
    """What was tried for a detector, as the tables need it."""

    settings: dict[str, Any]
    attack: str
    taken: bool
    d_eer: float
    n_morph: int
    n_bonafide: int


class _Control(TypedDict):
    """How many bona fide images, encoded and decoded, are called morphs."""

    detector: str
    trained_on: str
    degradation: str
    k: int
    n: int


@dataclass(frozen=True, eq=False)
class DetectionResult:
    """A study with its rows, and the run whose morphs it is of, if any.

    Attributes:
        study: the scores.
        rows: of `matrix_rows`; changed: of `hardening_rows`.
        run: for MMPMR beside the detectors; None where there are scores alone.
    """

    study: DetectionStudy
    rows: Sequence[Row]
    changed: Sequence[Row]
    run: Run | None = None

    @classmethod
    def of_run(cls, run: Run) -> "DetectionResult | None":
        """That of a run directory, or None where it holds no `detection.csv`.

        Raises:
            ReportError: a file that is malformed or leaves the directory.
        """
        return cls.read(run.directory, run) if run.path(DETECTION).is_file() else None

    @classmethod
    def read(cls, directory: Path, run: Run | None = None) -> "DetectionResult":
        """That of a directory, with or without a run in it.

        Raises:
            ReportError: a file that is absent, malformed or leaves the directory.
        """
        path = directory / DETECTION
        if not path.resolve().is_relative_to(directory.resolve()):
            raise ReportError(f"{path}: leaves the run directory; copy the file into it")
        try:
            study = read_detection(path)
            rows = matrix_rows(study, replicates=REPLICATES)
            return cls(study, rows, hardening_rows(study, replicates=REPLICATES), run)
        except EvaluationError as error:
            raise ReportError(str(error)) from None

    @cached_property
    def ranked(self) -> list[str]:
        """Names of the detectors by their D-EER on the attack that is hardest for each, best first.

        The rates are those on the validation people where every detector was tried on them, so
        that the test does not choose; otherwise those of the test.
        """

        def worst(name: str) -> float:
            if self.held_out:
                return self.chosen[name]["d_eer"]
            row = self.row(name, WORST)
            return 1.0 if row is None else row["d_eer"]

        return sorted(self.study.detectors, key=worst)

    @cached_property
    def candidates(self) -> dict[str, list[Row]]:
        """What was tried for each detector on the validation people: rows of settings, d_eer,
        attack, n_morph, n_bonafide and taken; none of a run that chose nothing."""
        stated = self._stated.get("detectors")
        found = {}
        for name, entry in stated.items() if isinstance(stated, Mapping) else ():
            rows = entry.get("candidates") if isinstance(entry, Mapping) else None
            if name in self.study.detectors and isinstance(rows, list) and rows:
                if all(map(_is_candidate, rows)) and sum(row["taken"] for row in rows) == 1:
                    found[name] = rows
        return found

    @cached_property
    def chosen(self) -> dict[str, Row]:
        """Of each detector the candidate that was taken."""
        return {d: next(r for r in rows if r["taken"]) for d, rows in self.candidates.items()}

    @property
    def held_out(self) -> bool:
        """Whether every detector was tried on people who are not tested."""
        return self.candidates.keys() == self.study.detectors.keys()

    def row(self, detector: str, attack: str, degradation: str = UNDEGRADED) -> Row | None:
        """The row of a detector's headline training."""
        trained = headline_of(self.rows, detector)
        return first_of(self.rows, detector=detector, trained_on=trained, attack=attack,
                        degradation=degradation)  # fmt: skip

    def _table(self, detector: str, degradation: str) -> ScoreTable | None:
        trained = headline_of(self.rows, detector)
        setting = DetectorSetting(detector, self.study.detectors[detector], trained, degradation)
        return self.study.tables.get(setting)

    def scores(self, detector: str, degradation: str = UNDEGRADED) -> DetectionScores | None:
        """Scores of its headline training."""
        table = self._table(detector, degradation)
        return None if table is None else DetectionScores.from_table(table, detector)

    def label(self, attack: str) -> str:
        """The attack's name in a plot."""
        if self.run is not None and attack in self.run.attacks:
            return self.run.short_label(attack)
        return printable(attack)

    def after(self, degradation: str) -> Run | None:
        """The run with the rows and scores of its morphs after a degradation; None without."""
        if self.run is None or degradation == UNDEGRADED:
            return self.run
        return self._degraded.get(degradation)

    @cached_property
    def _degraded(self) -> dict[str, Run]:
        assert self.run is not None
        result = self.run.result
        return {
            name: replace(
                self.run,
                result={**result, "rows": rows, "scores": f"degraded/{name}/scores.csv"},
            )
            for name, rows in read_degraded(self.run.directory, result).items()
        }

    def vulnerable(
        self, attack: str, system: str, at: EvaluationSetting, degradation: str
    ) -> Row | None:
        """The row of MMPMR after a degradation, None where it was not measured."""
        run = self.after(degradation)
        return None if run is None else run.row(attack, system, at)

    @cached_property
    def reconstructed(self) -> list[Row]:
        """Of the detectors as they are, and hardened: bona fide images encoded and decoded.

        Rows of detector, trained_on, degradation, k called morphs of n; none where the run did not
        try it.
        """
        found = self._stated.get("control")
        rows = [row for row in found if _is_control(row)] if isinstance(found, list) else []
        rows = [row for row in rows if row["detector"] in self.study.detectors]
        wanted = {d: (headline_of(self.rows, d), "hardened") for d in self.study.detectors}
        return [row for row in rows if row["trained_on"] in wanted[row["detector"]]]

    def passing(
        self, attack: str, system: str, at: EvaluationSetting, degradation: str = UNDEGRADED
    ) -> dict[str, Any] | None:
        """Morphs that pass a recogniser and the best detector, each after the degradation.

        Both thresholds are of images after it: of the recogniser's impostors, and of the detector's
        bona fide images.
        """
        run, table = self.after(degradation), self._table(self.ranked[0], degradation)
        if run is None or table is None or run.row(attack, system, at) is None:
            return None
        try:
            kept = run.path(run.result["scores"]).is_file()
        except (
            ReportError
        ):  # the name is a stranger's: no other file of this machine is read for it
            kept = False
        groups = run.groups(attack, system, at.probe) if kept else None
        tau = run.oriented_tau(system, at)
        if groups is None or tau is None:
            return None
        return passing(groups, tau, table, attack, bscer=BSCER, replicates=REPLICATES)

    @cached_property
    def _stated(self) -> Mapping[str, Any]:
        """What the run says of its detectors."""
        stated = None if self.run is None else self.run.result["run"].get("detection")
        return stated if isinstance(stated, Mapping) else {}

    def name(self, attack: str) -> str:
        """The attack's name in a sentence."""
        return self.label(attack).replace("\n", " ")

    def write(self, directory: Path) -> Path:
        """Writes the rows beside the report."""
        path = directory / ROWS
        write_json({"matrix": list(self.rows), "hardening": list(self.changed)}, path)
        return path


def _is_candidate(row: Any) -> bool:
    """Whether a stranger's row has what the tables need."""
    return not any(problems_of(row, _Candidate)) and 0 <= row["d_eer"] <= 1


def _is_control(row: Any) -> bool:
    """Whether a stranger's row has what the table needs."""
    return not any(problems_of(row, _Control)) and 0 <= row["k"] <= row["n"] and row["n"] > 0
