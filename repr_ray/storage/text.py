"""Untrusted text, made safe for terminals, logs, pages, tables and spreadsheets."""

import difflib
import re
from collections.abc import Iterable, Sequence

# Unicode's control characters, lone surrogates, line and paragraph separators, and marks that reorder or hide text.
_HIDDEN = (
    "\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\udfff"
    "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
)
_CONTROL = re.compile(f"[\x00-\x1f{_HIDDEN}]+")
_CONTROL_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f{_HIDDEN}]+")
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")


def line(text: object) -> str:
    """`text` on one line without control characters."""
    return _CONTROL.sub(" ", str(text)).strip()


def lines(text: object) -> str:
    """`text` without control characters but for its line breaks and tabs."""
    return _CONTROL_IN_LINES.sub(" ", str(text).replace("\r\n", "\n"))


def listed(texts: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first of some texts, and how many more there are."""
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + more


def hint(name: str, known: Iterable[str]) -> str:
    """The known name that is nearest to a misspelt one, to append to an error; empty if none is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def cell(text: object) -> str:
    """`text` for a cell of a CSV file: on one line, with a quote before what a spreadsheet takes for a formula."""
    plain = line(text)
    return f"'{plain}" if _FORMULA.match(plain) else plain
