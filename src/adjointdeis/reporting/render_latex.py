"""A table as LaTeX for booktabs: `\\input` it where the preamble has `\\usepackage{booktabs}`."""

from collections.abc import Iterable
from pathlib import Path

from adjointdeis.files import write_atomically, write_csv
from adjointdeis.reporting.document import Block, Cell, Table, parts
from adjointdeis.texts import printable, slug, spreadsheet_cell

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "−": r"$-$",
    "×": r"$\times$",
    "τ": r"$\tau$",
    "η": r"$\eta$",
    "‖": r"$\|$",
    "≤": r"$\le$",
    "±": r"$\pm$",
    "*": r"$^*$",
    "<": r"$<$",
    ">": r"$>$",
    "ρ": r"$\rho$",
}


def latex_table(table: Table) -> str:
    """A `table` environment: booktabs rules, details in script size, labels and notes below.

    Cells marked `paper` are in italics, so that ours and theirs differ without colour.
    """
    columns = "l" + "r" * (len(table.header) - 1)
    header = " & ".join(_header(name) for name in table.header)
    lines = [
        "% needs \\usepackage{booktabs} and \\usepackage{graphicx}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(table.title)}.}}",
        rf"\label{{tab:{slug(table.key)}}}",
        r"\resizebox{\linewidth}{!}{%",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        rf"{header} \\",
        r"\midrule",
    ]
    lines += [" & ".join(_cell(cell) for cell in row) + r" \\" for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}}"]
    words = [f"{name}: {value}" for name, value in table.labels]
    small = [". ".join([*words, ""]).strip()] if words else []
    for note in (*small, *table.notes):
        lines.append(rf"\par\smallskip{{\footnotesize {escape(note)}\par}}")
    return "\n".join([*lines, r"\end{table}", ""])


def write_tables(blocks: Iterable[Block], folder: Path) -> list[Path]:
    """Writes every table of some blocks as LaTeX and as CSV; returns the paths."""
    written = []
    for table in (block for block in parts(blocks) if isinstance(block, Table)):
        tex, plain = (folder / f"{slug(table.key)}.{suffix}" for suffix in ("tex", "csv"))
        write_atomically(tex, latex_table(table))
        lines = [table.header, *([c.flat for c in row] for row in table.rows)]
        write_csv(plain, (map(spreadsheet_cell, line) for line in lines))
        written += [tex, plain]
    return written


def escape(text: str) -> str:
    """Text with every character LaTeX would act on made literal."""
    return "".join(_ESCAPES.get(character, character) for character in printable(text))


def _header(name: str) -> str:
    first, comma, rest = name.partition(", ")
    if not comma:
        return escape(name)
    return rf"\shortstack[r]{{{escape(first)}\\{escape(rest)}}}"


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    if cell.mark == "paper":
        text = rf"\textit{{{text}}}"
    if not cell.detail:
        return text
    # Braces keep an opening bracket from being read as the optional argument of a line break.
    return rf"{text} {{\scriptsize {escape(' '.join(cell.detail))}}}"
