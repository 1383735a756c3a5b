"""Texts of others: names, ids and numbers, as they are compared, printed and made file names of."""

import hashlib
import math
import unicodedata

_DASHES = {ord(dash): "-" for dash in "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d"}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
LOOKALIKE = "case, dashes, a final .0 or leading zeros"
"""What ids of two spellings differ in that are one more often than two; see `confusable`."""
_NUMERALS = frozenset("0123456789.,%/ –−()[];")


def slug(name: str) -> str:
    """A name from data as one part of a file's name or as an anchor of a page.

    Letters, digits, dashes, underscores and dots stay; a name that needs any change, has capitals,
    begins with a dot or is long also gets a digest of itself, so that two names never share a file,
    on file systems that take X for x either.
    """
    plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
    if plain == file_key(name) == name and name[:1] not in ("", ".") and len(name.encode()) <= 100:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{plain.lstrip('.')[:40]}-{digest}"


def file_key(name: str) -> str:
    """A key that names share which some file system takes for one: X and x, é composed or not."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def any_number(text: str) -> float:
    """A number in a field of a file, NaN and infinity among them; a typeset minus is a minus.

    The marks between digits that Python takes are none: nobody means ten by `1_0`.

    Raises:
        ValueError: In words that follow the field: "is not a number".
    """
    try:
        if "_" in text:
            raise ValueError
        return float(text if text.isascii() else text.translate(_DASHES))
    except ValueError:
        raise ValueError("is not a number; write it like 0.25 or 1e-3, with a point") from None


def finite_number(text: str) -> float:
    """`any_number` that is finite; else a ValueError in words that follow the field."""
    value = any_number(text)
    if not math.isfinite(value):
        raise ValueError("is not finite")
    return value


def is_file_name(name: str, parts: int = 1) -> bool:
    """Whether a text is a name that every file system takes, and that stays in its folder.

    Args:
        name: The text, with "/" between parts.
        parts: At most so many of them.
    """
    if not name or len(name.split("/")) > parts:
        return False
    return all(
        # What is added to a name, a time or ".partial-", must fit into 255 bytes as well.
        0 < len(part.encode(errors="replace")) <= 180
        and not part.startswith((".", "-", "~"))
        and part == part.strip(" .")
        and printable(part) == part
        and not set(part) & set('\\:*?"<>|')
        for part in name.split("/")
    )


def printable(text: object, keep: str = "") -> str:
    """Text of others on one line: control characters as `\\x1b`, so that none of them acts.

    ESC would reach the terminal, a line feed could forge the next line, and marks of writing
    direction could turn text around.

    Args:
        text: Anything; taken as `str(text)`.
        keep: Characters that stay as they are, such as a line feed in a message of several lines.
    """
    found = str(text)
    if found.isprintable():
        return found
    # Blanks of other widths print as blanks, though Python does not count them as printable.
    return "".join(
        c
        if c.isprintable() or c in keep or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode("ascii")
        for c in found
    )


def spreadsheet_cell(value: object) -> object:
    """A CSV cell that no spreadsheet runs as a formula: text such as `=1+1` begins with `'`.

    Numbers and text of numerals alone, as in `-1.2 (-3.4)`, stay as they are.
    """
    if not isinstance(value, str) or not value.startswith(_FORMULA):
        return value
    rest = value[1:]
    harmless = value[0] in "+-" and all(c in _NUMERALS or c in "+-" for c in rest)
    return value if harmless else f"'{value}"


def canonical(text: str) -> str:
    """An id as it is compared: NFKC, without invisible characters, trimmed.

    Composed and decomposed accents, full-width digits, zero-width spaces and blanks around an id
    are spellings of one id. Case and leading zeros are kept, see `confusable`.
    """
    if text.isascii():
        return text.strip()
    kept = "".join(c for c in text if unicodedata.category(c) != "Cf" and c not in "\ufe0e\ufe0f")
    return unicodedata.normalize("NFKC", kept).strip()


def confusable(text: str) -> str:
    """A key that ids share which a person would take for one; they differ in `LOOKALIKE` alone.

    Spreadsheets drop the zeros of 007; data frames write 7.0 where another cell is empty.
    """
    folded = canonical(text).casefold().translate(_DASHES)
    folded = folded.removesuffix(".0") if folded[:-2].isdecimal() else folded
    return folded.lstrip("0") or "0" if folded.isdecimal() else folded
