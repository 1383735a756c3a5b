"""Report of the FRLL landmark experiment: Markdown, a CSV of the same rows, a grid of morphs."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adjointdeis.faces.datasets.pairs import MorphPair
from adjointdeis.files import write_atomically

HEADER = (
    "attack",
    "probe policy",
    "impostor policy",
    "variant",
    "threshold at FMR",
    "false matches",
    "MMPMR",
    "k/N",
    "Wilson 95%",
    "subject bootstrap 95%",
)


def write_report(result: Mapping[str, Any], folder: Path) -> None:
    """Writes report.md and table.csv into a folder, atomically."""
    lines = table_lines(result["rows"])
    text = io.StringIO()
    csv.writer(text).writerows([HEADER, *lines])
    write_atomically(folder / "table.csv", lambda stream: stream.write(text.getvalue()))
    report = "\n".join([*_preface(result), "", markdown_table(lines), "", *_notes(result), ""])
    write_atomically(folder / "report.md", lambda stream: stream.write(report))


def table_lines(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Cells of each row of results, in the order of `HEADER`."""
    lines = []
    for row in rows:
        bootstrap = "-"
        if row["bootstrap_lo"] is not None:
            bootstrap = f"{100 * row['bootstrap_lo']:.1f}-{100 * row['bootstrap_hi']:.1f}"
        lines.append(
            (
                row["attack"],
                row["probe_policy"],
                row["impostor_policy"],
                row["variant"],
                f"{row['tau']:.4f} at {100 * row['fmr_target']:g}%",
                f"{row['impostors_k']}/{row['impostors_n']}",
                f"{100 * row['value']:.1f}%",
                f"{row['k']}/{row['n']}",
                f"{100 * row['wilson_lo']:.1f}-{100 * row['wilson_hi']:.1f}",
                bootstrap,
            )
        )
    return lines


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """The rows as a Markdown table."""
    rows = [HEADER, ["---"] * len(HEADER), *lines]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def morph_grid(
    pairs: Sequence[MorphPair],
    faces: Mapping[str, Any],
    morphs: Mapping[str, Sequence[np.ndarray]],
    rows: int = 6,
) -> np.ndarray:
    """Identity a, each style, identity b, for pairs spread over the list, one pair per row."""
    chosen = np.unique(np.linspace(0, len(pairs) - 1, min(rows, len(pairs))).round().astype(int))
    lines = []
    for index in chosen:
        pair = pairs[index]
        middle = [images[index] for images in morphs.values()]
        lines.append(np.hstack([faces[pair.image_a].image, *middle, faces[pair.image_b].image]))
    return np.vstack(lines)


def _preface(result: Mapping[str, Any]) -> list[str]:
    pairs, data, judge = result["pairs"], result["data"], result["recogniser"]
    excluded = "left out" if pairs["false_matching_pairs_excluded"] else "not left out"
    return [
        "# Landmark morphs of real photographs",
        "",
        f"{data['name']}: {data['subjects']} people, {data['licence']}.",
        f"Pairs: {pairs['count']} of {pairs['subjects']} people; rule: {pairs['rule']}; "
        f"{pairs['false_matching_pairs']} pairs of people with a false match at the loosest "
        f"threshold, {excluded}.",
        f"Recogniser: {judge['name']} ({judge['score']}), alignment {judge['alignment']}.",
        f"Licence of its weights: {judge['licence']}.",
    ]


def _notes(result: Mapping[str, Any]) -> list[str]:
    rows = result["rows"]
    notes = [f"* {name}: {meaning}." for name, meaning in result["intervals"].items()]
    for policy in dict.fromkeys(row["impostor_policy"] for row in rows):
        row = next(row for row in rows if row["impostor_policy"] == policy)
        notes.append(
            f"* Impostor policy {policy}: FNMR {row['fnmr_k']}/{row['fnmr_n']} at this threshold; "
            f"rule of 30 {row['rule_of_30']}."
        )
    failed = {row["attack"]: row["n_fta"] for row in rows}
    notes.append(f"* Comparisons without a face found in the morph: {failed}.")
    if result["pairs"]["selector"] == result["recogniser"]["name"]:
        notes.append(
            "* The recogniser that judges also chose the pairs, which favours the attacks."
        )
    return notes
