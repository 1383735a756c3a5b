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
    hardening_rows,
    matrix_rows,
    read_detection,
)
from adjointdeis.evaluation.detection import WORST
from adjointdeis.evaluation.detection_matrix import DETECTION, UNDEGRADED, DetectorSetting
from adjointdeis.evaluation.detection_tables import first_of, headline_of
from adjointdeis.evaluation.passing import passing
from adjointdeis.evaluation.storage import write_json
from adjointdeis.files import printable
from adjointdeis.reporting.errors import ReportError
from adjointdeis.reporting.run import EvaluationSetting, Run, condition
from adjointdeis.reporting.schema import read_degraded

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
        """Detectors, the one that is best at its worst attack first."""

        def worst(name: str) -> float:
            row = self.row(name, WORST)
            return 1.0 if row is None else row["d_eer"]

        return sorted(self.study.detectors, key=worst)

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
        stated = {} if self.run is None else self.run.result["run"].get("detection")
        found = stated.get("control") if isinstance(stated, Mapping) else None
        rows = [row for row in found if _is_control(row)] if isinstance(found, list) else []
        rows = [row for row in rows if row["detector"] in self.study.detectors]
        wanted = {d: (headline_of(self.rows, d), "hardened") for d in self.study.detectors}
        return [row for row in rows if row["trained_on"] in wanted[row["detector"]]]

    def passing(self, attack: str, system: str, at: EvaluationSetting) -> dict[str, Any] | None:
        """Morphs that pass a recogniser and the best detector, undegraded."""
        detector = self.ranked[0]
        trained = headline_of(self.rows, detector)
        setting = DetectorSetting(detector, self.study.detectors[detector], trained, UNDEGRADED)
        table = self.study.tables.get(setting)
        if self.run is None or table is None:
            return None
        groups, tau = self.run.groups(attack, system, at.probe), self.run.oriented_tau(system, at)
        if groups is None or tau is None:
            return None
        return passing(groups, tau, table, attack, bscer=BSCER, replicates=REPLICATES)

    def name(self, attack: str) -> str:
        """The attack's name in a sentence."""
        return self.label(attack).replace("\n", " ")

    def write(self, directory: Path) -> Path:
        """Writes the rows beside the report."""
        path = directory / ROWS
        write_json({"matrix": list(self.rows), "hardening": list(self.changed)}, path)
        return path


def _is_control(row: Any) -> bool:
    """Whether a stranger's row has what the table needs."""
    if not isinstance(row, Mapping):
        return False
    k, n = row.get("k"), row.get("n")
    texts = all(isinstance(row.get(x), str) for x in ("detector", "trained_on", "degradation"))
    return texts and isinstance(k, int) and isinstance(n, int) and 0 <= k <= n and n > 0
