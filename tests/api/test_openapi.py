"""The OpenAPI document says everything that a client needs."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import pytest
from fastapi import FastAPI

from api.app import create_app

#: their errors have OpenAI's form
OPENAI_PATHS = ("/v1/chat/completions", "/v1/models", "/v1/models/{name}")
OPEN_PATHS = ("/health/live", "/health/ready", "/v1/schemas/exam")


@asynccontextmanager
async def no_lifespan(app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
    yield {}


@cache
def document() -> dict[str, Any]:
    return create_app(no_lifespan).openapi()


def operations() -> Iterator[Any]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield pytest.param(path, operation, id=f"{method.upper()} {path}")


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = document()["components"]["schemas"][name] if name else schema
    return found


@pytest.mark.parametrize(("path", "operation"), list(operations()))
def test_every_route_says_what_it_is_for(path: str, operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["description"]
    assert operation["tags"]


@pytest.mark.parametrize(("path", "operation"), list(operations()))
def test_every_route_but_health_needs_a_key_and_says_so(path: str, operation: dict[str, Any]) -> None:
    if path in OPEN_PATHS:
        assert "security" not in operation
        return
    assert {name for each in operation["security"] for name in each} == {"bearer", "api_key"}
    assert {"401", "403", "503"} <= operation["responses"].keys()
    if "{" in path:
        assert "404" in operation["responses"]


@pytest.mark.parametrize(("path", "operation"), list(operations()))
def test_every_error_is_a_problem_document_with_an_example(path: str, operation: dict[str, Any]) -> None:
    if path in OPENAI_PATHS:
        return
    for status, response in operation["responses"].items():
        if status.startswith(("4", "5")):
            content = response["content"]["application/problem+json"]
            assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
            assert content["example"]["status"] == int(status)


@pytest.mark.parametrize("path", OPENAI_PATHS)
def test_the_errors_of_openais_protocol_have_its_form(path: str) -> None:
    for operation in document()["paths"][path].values():
        errors = {status: each for status, each in operation["responses"].items() if status >= "4"}
        assert errors
        for response in errors.values():
            error = response["content"]["application/json"]["example"]["error"]
            # the document leaves out what is null
            assert error.keys() | {"param"} == {"message", "type", "param", "code"}


@pytest.mark.parametrize(("path", "operation"), list(operations()))
def test_every_answer_has_an_example(path: str, operation: dict[str, Any]) -> None:
    for status, response in operation["responses"].items():
        if not status.startswith("2") or status == "204":
            continue
        assert response["content"]
        for content in response["content"].values():
            schema = resolved(content.get("schema", {}))
            items = resolved(schema.get("properties", {}).get("items", {}).get("items", {}))
            assert "example" in content or schema.get("examples") or items.get("examples"), (status, content)


@pytest.mark.parametrize(("path", "operation"), list(operations()))
def test_every_body_and_parameter_is_described(path: str, operation: dict[str, Any]) -> None:
    for parameter in operation.get("parameters", []):
        assert parameter["description"], parameter["name"]
    for content in operation.get("requestBody", {}).get("content", {}).values():
        assert content["schema"]


def test_the_paths_of_the_sources_are_hidden() -> None:
    assert not [path for path in document()["paths"] if path.startswith("/api")]


def test_every_reference_leads_somewhere() -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                yield value["$ref"]
            for each in value.values():
                yield from references(each)
        elif isinstance(value, list):
            for each in value:
                yield from references(each)

    for reference in references(document()):
        target: Any = document()
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
