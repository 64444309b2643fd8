"""Money on the wire: every `…_nanodollars` of a document leaves as decimal dollars."""

from collections.abc import Mapping
from typing import Any

from domain.money import MAX_USD, NANODOLLARS, format_usd, parse_usd

__all__ = ["MAX_USD", "NANODOLLARS", "format_usd", "parse_optional_usd", "parse_usd", "with_usd"]

_SUFFIX = "_nanodollars"


def parse_optional_usd(value: object) -> int | None:
    """The nano-dollars that a decimal string states; `None` for a limit that is none."""
    return None if value is None else parse_usd(value)


def with_usd(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with every `…_nanodollars` at its top as `…_usd`."""
    return dict(_in_usd(name, value) for name, value in document.items())


def _in_usd(name: str, value: Any) -> tuple[str, Any]:
    if not name.endswith(_SUFFIX):
        return name, value
    return name.removesuffix(_SUFFIX) + "_usd", None if value is None else format_usd(value)
