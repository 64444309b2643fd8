"""Money on the wire: decimal strings in dollars outside, whole nanodollars inside, no float between."""

import re
from collections.abc import Mapping
from typing import Any

NANODOLLARS = 1_000_000_000
MAX_USD = 1_000_000_000

_AMOUNT = re.compile(r"([0-9]{1,10})(?:\.([0-9]{1,9}))?")
_SUFFIX = "_nanodollars"


def parse_usd(text: object) -> int:
    """The whole nanodollars that a decimal string states; `ValueError` says what is expected."""
    match = _AMOUNT.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError('expected dollars as a decimal string with at most 9 decimals, such as "2.50"')
    whole, fraction = match.groups(default="")
    nanodollars = int(whole) * NANODOLLARS + int(fraction.ljust(9, "0"))
    if nanodollars > MAX_USD * NANODOLLARS:
        raise ValueError(f"more than {MAX_USD:,} dollars; state a lower limit")
    return nanodollars


def format_usd(nanodollars: int) -> str:
    """The amount as an exact decimal string with two decimals or as many as it needs."""
    sign = "-" if nanodollars < 0 else ""
    whole, rest = divmod(abs(nanodollars), NANODOLLARS)
    return f"{sign}{whole}.{f'{rest:09d}'.rstrip('0').ljust(2, '0')}"


def with_usd(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with every `…_nanodollars` at its top as `…_usd`."""
    return dict(_in_usd(name, value) for name, value in document.items())


def _in_usd(name: str, value: Any) -> tuple[str, Any]:
    if not name.endswith(_SUFFIX):
        return name, value
    return name.removesuffix(_SUFFIX) + "_usd", None if value is None else format_usd(value)
