"""Domain values as JSON documents in the object store, checked on their way in."""

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from domain.errors import DocumentInvalid

Value = TypeVar("Value")


def encode(value: object) -> bytes:
    """The value, a dataclass, as a JSON document in UTF-8."""
    return _adapter(type(value)).dump_json(value)


def decode(kind: type[Value], content: bytes) -> Value:
    """The value that `encode`, or another program, wrote; raises `DocumentInvalid`, which names the field."""
    try:
        value: Value = _adapter(kind).validate_json(content)
    except ValidationError as error:
        raise _invalid(kind, error) from None  # its text quotes the document
    return value


def plain(value: object) -> dict[str, Any]:
    """The value as plain data, as JSON has it."""
    data: dict[str, Any] = _adapter(type(value)).dump_python(value, mode="json")
    return data


def from_plain(kind: type[Value], data: object) -> Value:
    """The value that `plain` made the data of; raises `DocumentInvalid`."""
    try:
        value: Value = _adapter(kind).validate_python(data)
    except ValidationError as error:
        raise _invalid(kind, error) from None
    return value


def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        # making one costs milliseconds
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}


def _invalid(kind: type[Any], error: ValidationError) -> DocumentInvalid:
    first = error.errors(include_input=False, include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return DocumentInvalid(f"{kind.__name__}: {field or 'the document'}: {first['msg']}", field=field)
