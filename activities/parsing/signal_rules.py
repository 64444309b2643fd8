"""The rules of `signals.yaml` as values, and the state of a log that they are held against."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

import yaml

from activities.parsing.dataflash import Record
from domain.documents import from_plain
from domain.logs import Level

#: a flight controller has about 1,500; a log of garbage must not state more and more
_MAX_PARAMETERS = 10_000


@dataclass(frozen=True)
class Parameter:
    """A bound that the log itself states."""

    parameter: tuple[str, ...]
    factor: float = 1.0
    otherwise: float | None = None


@dataclass(frozen=True)
class Value:
    """A measured value, and what it must be to count."""

    field: tuple[str, ...]
    minus: tuple[str, ...] = ()
    factor: float = 1.0
    magnitude: bool = False
    above: float | None = None
    below: float | None = None
    among: tuple[str, ...] = ()
    not_among: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """One rule of `signals.yaml`, whose head says what its fields mean."""

    code: str
    title: str
    level: Level
    by: str
    kind: str = ""
    values: tuple[Value, ...] = ()
    where: tuple[Value, ...] = ()
    above: float | Parameter | None = None
    below: float | Parameter | None = None
    tolerated: float = 0.0
    records: int = 1
    beside: str = ""
    begun: Value | None = None
    over: Value | None = None
    pattern: str = ""
    but_not: str = ""
    hints: tuple[str, ...] = ()
    unit: str = ""


@cache
def rules() -> Mapping[str, tuple[Rule, ...]]:
    """The rules by format; those of `any` are for every log."""
    data = yaml.safe_load((files(__package__) / "signals.yaml").read_text("utf-8"))
    return {name: tuple(from_plain(Rule, each) for each in section) for name, section in data.items()}


@dataclass
class State:
    """What the log has said so far: its parameters, and the last record of each kind."""

    parameters: dict[str, float] = field(default_factory=dict)
    last: dict[str, Record] = field(default_factory=dict)

    def note(self, record: Record) -> None:
        """Remember a record."""
        self.last[record.kind] = record
        value = record.number("Value") if record.kind == "PARM" else None
        if value is not None and len(self.parameters) < _MAX_PARAMETERS:
            self.parameters[record.fields.get("Name", "")] = value

    def bound(self, bound: float | Parameter | None) -> float | None:
        """The bound as a number; `None` where there is none."""
        if not isinstance(bound, Parameter):
            return bound
        stated = (
            self.parameters[name] * bound.factor for name in bound.parameter if self.parameters.get(name)
        )
        return next(stated, bound.otherwise)

    def number(self, value: Value, record: Record) -> float | None:
        """What a value is now; `None` where the log does not have it, or where it is no number."""
        first = self._of(value.field, record)
        second = self._of(value.minus, record) if value.minus else 0.0
        if first is None or second is None or math.isnan(difference := (first - second) * value.factor):
            return None
        return abs(difference) if value.magnitude else difference

    def _of(self, names: tuple[str, ...], record: Record) -> float | None:
        for name in names:
            kind, _, own = name.rpartition(".")
            source = self.last.get(kind) if kind else record
            number = None if source is None else source.number(own)
            if number is not None:
                return number
        return None

    def meets(self, condition: Value, record: Record) -> bool:
        """Whether a value is what the condition asks for; one that nobody has stated meets only a ban."""
        if condition.among or condition.not_among:
            kind, _, own = condition.field[0].rpartition(".")
            source = self.last.get(kind) if kind else record
            text = "" if source is None else source.fields.get(own, "")
            return text in condition.among if condition.among else text not in condition.not_among
        number = self.number(condition, record)
        if number is None:
            return False
        return (condition.above is None or number > condition.above) and (
            condition.below is None or number < condition.below
        )
