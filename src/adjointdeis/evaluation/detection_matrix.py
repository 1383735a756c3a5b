r"""Detectors under several trainings and degradations: who finds which attack, and who does not.

`detection.csv` has one line per scored image:

=========== ==================================================================================
detector    its name
kind        `s_mad` (one image), `d_mad` (with a trusted live capture) or `demorphing`
trained_on  `all`, an attack, `without:<attack>` (leave one out), `hardened` (guided morphs among
            the examples), `shuffled` (the control: labels shuffled) or `given` (not trained here)
degradation what the image went through, `none` or a name
attack      the morph's attack; empty for a bona fide image
label       `morph` or `bona_fide`
subject_1   who is on the image, or the morph's first person; may be empty where nobody is named
subject_2   the morph's second person
image       its name
score       larger says morph; empty or NaN where the detector failed
=========== ==================================================================================

Only detector, label, attack, image and score are required. Of the others an absent column means
`s_mad`, `given`, `none` and nobody named.

One detector, training and degradation is a `DetectorSetting`; each is evaluated by itself, against
its own bona fide images, by `detection_rows`. Differences between two of them are paired: the same
people are drawn for both.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from adjointdeis.evaluation.columns import spellings, text_column
from adjointdeis.evaluation.detection import WORST
from adjointdeis.evaluation.detection_points import Images, detection_rows, resampled_points
from adjointdeis.evaluation.errors import DetectionError, EvaluationError, ScoreError
from adjointdeis.evaluation.formats.text import score_or_failure
from adjointdeis.evaluation.scores import BONA_FIDE, ScoreTable
from adjointdeis.evaluation.storage import check_header
from adjointdeis.evaluation.uncertainty import draw_subjects, percentile_interval
from adjointdeis.files import read_table

DETECTION = "detection.csv"
COLUMNS = (
    "detector",
    "kind",
    "trained_on",
    "degradation",
    "attack",
    "label",
    "subject_1",
    "subject_2",
    "image",
    "score",
)
REQUIRED = ("detector", "attack", "label", "image", "score")
DEFAULTS = {"kind": "s_mad", "trained_on": "given", "degradation": "none"}
KINDS = {
    "s_mad": "single image",
    "d_mad": "with a live capture",
    "demorphing": "demorphing",
}
LABELS = ("morph", "bona_fide")
UNDEGRADED = "none"
_CANONICAL = " (a canonical score file? use `adjointdeis-eval mad`)"
TRAININGS = ("all", "hardened", "shuffled", "given")
WITHOUT = "without:"
_RESERVED = (*TRAININGS, BONA_FIDE, "bona_fide", WORST)
CHANGES = ("d_eer", "bscer10", "macer10")
_NAMED = (("detector",), ("degradation",), ("attack",), ("subject_1", "subject_2"))
SIGN_TEST = 6
"""Images that must change sides before a sign test can find a difference at 5%: 2 / 2^6 < 5%."""


@dataclass(frozen=True, order=True)
class DetectorSetting:
    """What a set of scores is of; scores compare only under one of them.

    Args:
        detector: Name of the detector.
        kind: `s_mad`, `d_mad` or `demorphing`.
        trained_on: What it was trained on, see the module.
        degradation: What the images went through; `none` for nothing.
    """

    detector: str
    kind: str
    trained_on: str
    degradation: str

    def __str__(self) -> str:
        return f"{self.detector}, trained on {self.trained_on}, degradation {self.degradation}"


@dataclass(frozen=True, eq=False)
class DetectionStudy:
    """Scores of detectors under every setting; build it with `read_detection`.

    Attributes:
        tables: `mad` rows by setting, in the order of the file.
        source: the file, for messages.
    """

    tables: Mapping[DetectorSetting, ScoreTable]
    source: str = ""

    @property
    def attacks(self) -> list[str]:
        """Attacks that were scored, in order of first appearance."""
        found: dict[str, None] = {}
        for table in self.tables.values():
            names = table["attack"][table["attack"] != BONA_FIDE]
            _, first = np.unique(names, return_index=True)
            found.update(dict.fromkeys(str(names[k]) for k in np.sort(first)))
        return list(found)

    @property
    def detectors(self) -> dict[str, str]:
        """Detector -> its kind."""
        return {setting.detector: setting.kind for setting in self.tables}

    @property
    def degradations(self) -> list[str]:
        """Degradations, the undegraded images first."""
        found = list(dict.fromkeys(setting.degradation for setting in self.tables))
        return sorted(found, key=lambda name: name != UNDEGRADED)

    def learnt(self, detector: str) -> dict[str, str]:
        """Attack -> the least training of a detector that had it: `all`, `hardened` or `never`.

        Leave-one-out names what `all` had, an attack that only has a detector of its own is of the
        guided ones that `hardened` had beside them, the others were never learnt. Empty without
        leave-one-out, for then nothing says it.
        """
        names = {s.trained_on for s in self.tables if s.detector == detector}
        if not any(name.startswith(WITHOUT) for name in names):
            return {}
        return {
            attack: "all" if WITHOUT + attack in names
            else "hardened" if attack in names and "hardened" in names else "never"
            for attack in self.attacks
        }  # fmt: skip

    def saw(self, setting: DetectorSetting, attack: str) -> bool | None:
        """Whether an attack was among the training examples; None where nothing says it.

        Args:
            setting: Detector, training and degradation.
            attack: An attack that the detector was tested on.
        """
        name, least = setting.trained_on, self.learnt(setting.detector).get(attack)
        if name not in TRAININGS and not name.startswith(WITHOUT):
            return attack == name
        if name.startswith(WITHOUT):
            return least == "all" and attack != name.removeprefix(WITHOUT)
        if name in ("shuffled", "given") or least is None:
            return None
        return least == "all" or (name, least) == ("hardened", "hardened")

    def trainings(self, detector: str) -> list[str]:
        """What a detector was trained on: `all` first, then attacks, leave-one-out, the others."""
        found = {s.trained_on for s in self.tables if s.detector == detector}
        return [name for name in training_order(self.attacks) if name in found]


def training_order(attacks: Sequence[str]) -> list[str]:
    """Every training that these attacks allow, in the order of the tables."""
    left_out = [WITHOUT + name for name in attacks]
    return ["all", "given", *attacks, *left_out, "hardened", "shuffled"]


def read_detection(path: str | os.PathLike[str]) -> DetectionStudy:
    """Reads a `detection.csv`, the columns in any order.

    Args:
        path: The file.

    Raises:
        ScoreError: naming file and line: a column that is missing, unknown or twice there, a name
            that is none of those above, a score that is no finite number, a bona fide image of an
            attack or of two people, a morph of nobody's attack or of one person, a detector of two
            kinds, or one image with two scores under one setting.
    """
    path = Path(path)
    header, lines = read_table(path, ScoreError)
    check_header(path, header, REQUIRED, COLUMNS, _CANONICAL if "system" in header else "")
    values: dict[str, list[str]] = {name: [] for name in COLUMNS}
    at: list[int] = []
    for line, row in lines:
        for name in COLUMNS:
            values[name].append(row.get(name, "") or DEFAULTS.get(name, ""))
        at.append(line)
    if not at:
        raise ScoreError(f"{path}: no scored image in this file")
    columns = {name: text_column(values[name]) for name in COLUMNS if name != "score"}
    _check(path, columns, at)
    status, score = [], np.full(len(at), np.nan)
    for k, text in enumerate(values["score"]):
        found = score_or_failure(path, at[k], text)
        status.append(found.get("status", "ok"))
        score[k] = found.get("score", np.nan)
    return _study(path, columns, score, np.array(status), np.array(at, dtype=np.int64))


def _check(path: Path, columns: Mapping[str, np.ndarray], lines: Sequence[int]) -> None:
    """Refuses the first line that contradicts itself or another one."""
    morph = columns["label"] == "morph"
    attack, one, two = columns["attack"], columns["subject_1"], columns["subject_2"]
    attacks = list(dict.fromkeys(attack[morph].tolist()))
    trained = columns["trained_on"]
    names = [name.removeprefix(WITHOUT) for name in trained.tolist()]
    known = np.isin(trained, TRAININGS) | np.isin(names, attacks)
    _, first, inverse = np.unique(columns["detector"], return_index=True, return_inverse=True)
    kinds = " or ".join(KINDS)
    labels = " or ".join(LABELS)
    listed = ", ".join(map(str, attacks)) or "none"
    faults = (
        ("detector", columns["detector"] == "", "every line needs a detector"),
        ("image", columns["image"] == "", "every line needs the name of its image"),
        ("kind", ~np.isin(columns["kind"], tuple(KINDS)), f"expected {kinds}"),
        ("label", ~np.isin(columns["label"], LABELS), f"expected {labels}"),
        ("attack", morph & (attack == ""), "a morph needs the name of its attack"),
        ("attack", np.isin(attack, _RESERVED) | np.char.startswith(attack.astype(str), WITHOUT),
         "this name means something else here; give the attack another one"),
        ("attack", ~morph & (attack != ""), "a bona fide image is of no attack; leave it empty"),
        ("subject_2", ~morph & (two != ""), "a bona fide image has one person, subject_1"),
        ("subject_2", morph & ((one == "") != (two == "")), "a morph has two people or none named"),
        ("subject_2", morph & (one == two) & (one != ""), "a morph is of two people"),
        ("trained_on", ~known, f"expected {', '.join(TRAININGS)}, an attack of this file ({listed})"
         f" or {WITHOUT}<attack>"),
        ("kind", columns["kind"] != columns["kind"][first][inverse],
         "the detector has another kind further up; one detector is of one kind"),
        *spellings(columns, _NAMED),
    )  # fmt: skip
    wrong = [(int(np.argmax(bad)), name, why) for name, bad, why in faults if bad.any()]
    if wrong:
        row, name, why = min(wrong, key=lambda found: found[0])
        raise ScoreError(f"{path}:{lines[row]}: {name} {str(columns[name][row])!r}: {why}")


def _study(
    path: Path,
    columns: Mapping[str, np.ndarray],
    score: np.ndarray,
    status: np.ndarray,
    lines: np.ndarray,
) -> DetectionStudy:
    keys = [columns[name].tolist() for name in ("detector", "kind", "trained_on", "degradation")]
    rows: dict[DetectorSetting, list[int]] = {}
    for k, key in enumerate(zip(*keys, strict=True)):
        rows.setdefault(DetectorSetting(*key), []).append(k)
    morph = columns["label"] == "morph"
    tables = {}
    for setting, own in rows.items():
        tables[setting] = ScoreTable.from_columns(
            source=str(path),
            lines=lines[own],
            kind="mad",
            system=setting.detector,
            score=score[own],
            score_type="similarity",
            status=status[own],
            attack=[str(columns["attack"][k]) if morph[k] else BONA_FIDE for k in own],
            morph_id=[str(columns["image"][k]) if morph[k] else "" for k in own],
            ref_id=columns["image"][own],
            subject_id=columns["subject_1"][own],
            ref_subject_id=columns["subject_2"][own],
        )
    return DetectionStudy(tables, str(path))


def matrix_rows(
    study: DetectionStudy,
    *,
    replicates: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """Trained on i, tested on j: a row per setting and attack, and one for the worst attack.

    Args:
        study: Detection scores under every setting.
        replicates, seed, confidence: as for `detection_rows`.

    Returns:
        JSON-ready rows of `detection_rows` with detector, kind, trained_on, degradation and `saw`,
        see `DetectionStudy.saw`; None for the worst attack.

    Raises:
        DetectionError: a setting without a usable morph or bona fide image; names it.
    """
    rows = []
    for setting, table in study.tables.items():
        try:
            found = detection_rows(table, replicates=replicates, seed=seed, confidence=confidence)
        except EvaluationError as error:
            raise DetectionError(f"{study.source or 'scores'}: {setting}: {error}") from None
        for row in found:
            del row["system"]
            saw = None if row["attack"] == WORST else study.saw(setting, row["attack"])
            rows.append({**asdict(setting), "saw": saw, **row})
    return rows


def hardening_rows(
    study: DetectionStudy,
    *,
    before: str = "all",
    after: str = "hardened",
    replicates: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[dict[str, Any]]:
    """What another training changes, attack by attack: `after` minus `before`, on the same images.

    Args:
        study: Detection scores under every setting.
        before, after: Two trainings; detectors that have both are compared.
        replicates, seed, confidence: of the paired subject bootstrap; 0 gives no interval.

    Returns:
        a row per detector, degradation and attack, the worst one too: detector, kind, degradation,
        attack, learnt (see `DetectionStudy.learnt`, None where nothing says it), n_morph,
        n_bonafide, and for `d_eer`, `bscer10` (what bona fide people pay where at most 10% of the
        morphs are missed) and `macer10` a dictionary of before, after, change, lo and hi, the
        interval being of the change; None where fewer images are there than it needs. An interval
        holds zero where the change is of fewer than `SIGN_TEST` images, whatever was drawn.

    Raises:
        DetectionError: the two trainings scored different images.
    """
    rows = []
    for old in [setting for setting in study.tables if setting.trained_on == before]:
        new = replace(old, trained_on=after)
        if new not in study.tables:
            continue
        both = [study.tables[old], study.tables[new]]
        sides = [Images.of(table, old.detector) for table in both]
        images = [set(zip(table["attack"], table["ref_id"], strict=True)) for table in both]
        if images[0] != images[1]:
            raise DetectionError(
                f"{study.source or 'scores'}: {old.detector}, degradation {old.degradation}: "
                f"{before!r} and {after!r} scored different images; score the same ones with both"
            )
        rates = []
        for setting in (old, new):
            alone = DetectionStudy({setting: study.tables[setting]}, study.source)
            rates.append({row["attack"]: row for row in matrix_rows(alone, replicates=0)})
        draws = None
        if replicates:
            people = np.concatenate([side.people.ravel() for side in sides])
            draws = draw_subjects(np.unique(people), replicates=replicates, seed=seed)
        attacks = [name for name in rates[0] if name != WORST]
        groups = [*([name] for name in attacks), attacks]
        drawn = None if draws is None else [resampled_points(i, groups, draws) for i in sides]
        for g, attack in enumerate((*attacks, WORST)):
            first, second = (found[attack] for found in rates)
            row: dict[str, Any] = {
                "detector": old.detector,
                "kind": old.kind,
                "degradation": old.degradation,
                "attack": attack,
                "learnt": study.learnt(old.detector).get(attack),
                "n_morph": first["n_morph"],
                "n_bonafide": first["n_bonafide"],
            }
            for name in CHANGES:
                one, two = first[name], second[name]
                if name != "d_eer":
                    one, two = one["value"], two["value"]
                row[name] = None
                if one is None or two is None:
                    continue
                row[name] = {"before": one, "after": two, "change": two - one, "lo": None,
                             "hi": None}  # fmt: skip
                if drawn is not None:
                    lo, hi = percentile_interval(drawn[1][g][name] - drawn[0][g][name], confidence)
                    n = {"macer10": first["n_morph"], "bscer10": first["n_bonafide"]}
                    images_changed = abs(two - one) * n.get(name, min(n.values()))
                    if images_changed < SIGN_TEST:
                        lo, hi = min(lo, 0.0), max(hi, 0.0)
                    row[name]["lo"], row[name]["hi"] = lo, hi
            rows.append(row)
    return rows
