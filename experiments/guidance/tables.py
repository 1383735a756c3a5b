"""The bench's tables in Markdown, from its result alone."""

from pathlib import Path
from typing import Any

from adjointdeis.files import write_atomically


def write_tables(path: Path, result: dict[str, Any]) -> None:
    """Writes the tables of a result."""
    text = tables(result)
    write_atomically(path, text)


def tables(result: dict[str, Any]) -> str:
    """One table per task: quality with intervals, cost, and the command of every row."""
    parts = []
    for task in result["tasks"]:
        rows = [row for row in result["rows"] if row["row"].partition("/")[0] == task]
        if rows:
            parts.append(_table(task, rows, result["labels"]))
    return "\n".join(parts)


def _table(task: str, rows: list[dict[str, Any]], labels: dict[str, str]) -> str:
    measures = list(rows[0]["quality"])
    columns = [
        "method", *measures, "NFE", "VJPs", "latents", "graphs", "CPU s", "`only=`",
    ]  # fmt: skip
    lines = [
        f"### {labels.get(task, task)}",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
    ]
    for row in rows:
        short = row["row"].partition("/")[2]
        kind = row["settings"]["of"].lower()
        name = labels.get(f"{kind}/{short}") or labels.get(short) or short
        cells = [name]
        cells += [_value(row["quality"][measure]) for measure in measures]
        cells += [str(row[key]) for key in ("nfe", "vjps", "peak_latents", "peak_graphs")]
        cells += [f"{row['cpu_seconds']:.1f}", f"`{row['row']}`"]
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"* {row['row']}: {'; '.join(row['notes'])}" for row in rows if row["notes"]]
    return "\n".join([*lines, "", *notes, *([""] if notes else [])])


def _value(found: dict[str, Any]) -> str:
    if found["mean"] is None:
        return "-"
    if found["share"]:
        count = round(found["mean"] * found["n"])
        return f"{count}/{found['n']} [{100 * found['lo']:.0f}, {100 * found['hi']:.0f}]%"
    return f"{found['mean']:.3g} [{found['lo']:.3g}, {found['hi']:.3g}]"
