"""Scores of detectors with their rows and the run that they are of, as reports see them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adjointdeis.evaluation import (
    DetectionScores,
    DetectionStudy,
    EvaluationError,
    MorphScores,
    ScoreTable,
    group_table,
    hardening_rows,
    matrix_rows,
    read_detection,
    read_scores,
)
from adjointdeis.evaluation.detection import WORST
from adjointdeis.evaluation.detection_matrix import DETECTION, UNDEGRADED, DetectorSetting
from adjointdeis.evaluation.detection_tables import first_of, headline_of
from adjointdeis.evaluation.passing import passing
from adjointdeis.evaluation.storage import write_json
from adjointdeis.reporting.errors import ReportError
from adjointdeis.reporting.run import EvaluationSetting, Run, condition
from adjointdeis.reporting.schema import read_degraded
from adjointdeis.texts import printable

ROWS = "detection_rows.json"
REPLICATES = 500
"""Of the bootstrap in a run's report, whose matrix has hundreds of settings."""
BSCER = 0.1
"""Share of bona fide images that may be flagged where one operating point stands for a detector."""
Row = Mapping[str, Any]


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

    def scores(self, detector: str, degradation: str = UNDEGRADED) -> DetectionScores | None:
        """Scores of its headline training."""
        trained = headline_of(self.rows, detector)
        setting = DetectorSetting(detector, self.study.detectors[detector], trained, degradation)
        table = self.study.tables.get(setting)
        return None if table is None else DetectionScores.from_table(table, detector)

    def label(self, attack: str) -> str:
        """The attack's name in a plot."""
        if self.run is not None and attack in self.run.attacks:
            return self.run.short_label(attack)
        return printable(attack)

    def vulnerable(
        self, attack: str, system: str, at: EvaluationSetting, degradation: str
    ) -> Row | None:
        """The row of MMPMR after a degradation, None where it was not measured."""
        if self.run is None:
            return None
        if degradation == UNDEGRADED:
            return self.run.row(attack, system, at)
        for row in self.degraded.get(degradation, ()):
            if (row["attack"], row["system"], condition(row)) == (attack, system, at):
                return row
        return None

    @cached_property
    def degraded(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of MMPMR by degradation, of the run that the scores are of."""
        return {} if self.run is None else read_degraded(self.run.directory, self.run.result)

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
        detector = self.ranked[0]
        trained = headline_of(self.rows, detector)
        setting = DetectorSetting(detector, self.study.detectors[detector], trained, degradation)
        table, row = (
            self.study.tables.get(setting),
            self.vulnerable(attack, system, at, degradation),
        )
        if self.run is None or table is None or row is None:
            return None
        if degradation == UNDEGRADED:
            groups = self.run.groups(attack, system, at.probe)
        else:
            groups = self._degraded_groups(attack, system, at.probe, degradation)
        if groups is None:
            return None
        tau = -row["tau"] if row["score_type"] == "dissimilarity" else row["tau"]
        return passing(groups, tau, table, attack, bscer=BSCER, replicates=REPLICATES)

    def _degraded_groups(
        self, attack: str, system: str, probe: str, degradation: str
    ) -> MorphScores | None:
        table = self._degraded_scores(degradation)
        try:
            return None if table is None else group_table(
                table, attack=attack, system=system, probe_policy=probe
            )  # fmt: skip
        except EvaluationError:
            return None

    def _degraded_scores(self, degradation: str) -> ScoreTable | None:
        """The comparison scores after a degradation; None where the run did not keep them."""
        if degradation not in self._read:
            assert self.run is not None
            path = self.run.directory / "degraded" / degradation / "scores.csv"
            # The name is a stranger's: no other file of this machine is read for it.
            inside = path.resolve().is_relative_to(self.run.directory.resolve())
            try:
                found = read_scores(path) if inside and path.is_file() else None
            except EvaluationError as error:
                raise ReportError(f"scores after {degradation}: {error}") from None
            self._read[degradation] = found
        return self._read[degradation]

    @cached_property
    def _read(self) -> dict[str, ScoreTable | None]:
        return {}

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
    if not isinstance(row, Mapping) or not isinstance(row.get("settings"), Mapping):
        return False
    sizes = all(isinstance(row.get(name), int) for name in ("n_morph", "n_bonafide"))
    texts = isinstance(row.get("attack"), str) and isinstance(row.get("taken"), bool)
    d_eer = row.get("d_eer")
    return sizes and texts and isinstance(d_eer, float) and 0 <= d_eer <= 1


def _is_control(row: Any) -> bool:
    """Whether a stranger's row has what the table needs."""
    if not isinstance(row, Mapping):
        return False
    k, n = row.get("k"), row.get("n")
    texts = all(isinstance(row.get(x), str) for x in ("detector", "trained_on", "degradation"))
    return texts and isinstance(k, int) and isinstance(n, int) and 0 <= k <= n and n > 0
