"""Request bodies read by hand: after the key is checked, and never more than their limit."""

from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from domain.errors import LimitExceeded

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request, at_most: int, limit_name: str) -> bytes:
    """The whole body; raises `LimitExceeded`, from the stated length already where there is one."""
    check_length(request, at_most, limit_name)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > at_most:
            raise too_large("body", at_most, limit_name)
    return bytes(body)


def check_length(request: Request, at_most: int, limit_name: str) -> None:
    """Raise `LimitExceeded` if the stated length is over the limit."""
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > at_most:
        raise too_large("body", at_most, limit_name)


def too_large(what: str, at_most: int, limit_name: str) -> LimitExceeded:
    """The refusal of something over a size limit."""
    return LimitExceeded(f"The {what} is larger than {limit_name} ({at_most:,} bytes).", field=what)


def parse_body(model: type[Model], body: bytes) -> Model:
    """The body as that model; a body that is none is FastAPI's own validation error."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        faults = [{**fault, "loc": ("body", *fault["loc"])} for fault in error.errors(include_url=False)]
        raise RequestValidationError(faults) from error


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The `requestBody` of a route that reads its body by hand, for the OpenAPI document."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    # what it refers to is in the document already, by the answers
    schema.pop("$defs", None)
    examples = schema.pop("examples", [])
    content = {"schema": schema, "example": examples[0]} if examples else {"schema": schema}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}
