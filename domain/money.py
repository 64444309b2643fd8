"""Money: whole nano-dollars with a type of their own; decimal dollars outside, no float anywhere."""

import re
from typing import Self

NANODOLLARS = 1_000_000_000
MAX_USD = 1_000_000_000

_AMOUNT = re.compile(r"([0-9]{1,10})(?:\.([0-9]{1,9}))?")


class Money(int):
    """A whole number of nano-dollars; adds up to money only, and is shown as dollars.

    A float, a fraction or a bool is refused where it would become money: `TypeError`.
    """

    __slots__ = ()

    def __new__(cls, nanodollars: int = 0) -> Self:
        """That many nano-dollars."""
        if not isinstance(nanodollars, int) or isinstance(nanodollars, bool):
            raise TypeError(f"money is a whole number of nano-dollars, not {nanodollars!r}")
        return super().__new__(cls, nanodollars)

    @classmethod
    def from_usd(cls, text: object) -> Self:
        """The amount that a decimal string states; `ValueError` says what is expected."""
        return cls(parse_usd(text))

    @property
    def usd(self) -> str:
        """The exact amount in dollars, with two decimals or as many as it needs."""
        return format_usd(int(self))

    def __add__(self, other: int) -> "Money":
        """The sum."""
        return Money(int(self) + int(Money(other)))

    __radd__ = __add__

    def __sub__(self, other: int) -> "Money":
        """The difference."""
        return Money(int(self) - int(Money(other)))

    def __rsub__(self, other: int) -> "Money":
        """The difference."""
        return Money(int(Money(other)) - int(self))

    def __neg__(self) -> "Money":
        """The opposite amount."""
        return Money(-int(self))

    def __mul__(self, times: int) -> "Money":
        """So many times the amount."""
        return Money(int(self) * int(Money(times)))

    __rmul__ = __mul__

    def __truediv__(self, other: object) -> float:
        """Refused: a share of money is rounded by a stated rule, or it is no money."""
        raise TypeError("money is not divided into floats; divide whole nano-dollars and say how to round")

    def __str__(self) -> str:
        """The amount in dollars, without a sign for the currency."""
        return self.usd

    def __repr__(self) -> str:
        """The amount in dollars, named."""
        return f"Money({self.usd} USD)"


ZERO = Money(0)


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
    whole, rest = divmod(abs(int(nanodollars)), NANODOLLARS)
    return f"{sign}{whole}.{f'{rest:09d}'.rstrip('0').ljust(2, '0')}"
