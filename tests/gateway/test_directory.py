"""Requests go to the upstream of the model's name."""

import pytest

from domain.completion import CompletionRequest
from domain.errors import UnknownModel
from domain.exam import Criterion, Question, QuestionType
from domain.identity import LogicalStep
from gateway.directory import ModelDirectory
from gateway.scripted import ScriptedModel

QUESTION = Question("q1", QuestionType.ESSAY, "Why?", 1.0, (Criterion("c1", 1.0, "One."),))


def request(model: str) -> CompletionRequest:
    return CompletionRequest(LogicalStep("f", 1, "q1", "all", "first"), 1, model, QUESTION, "So.")


async def test_a_request_reaches_its_upstream_alone():
    one, other = ScriptedModel(), ScriptedModel()
    directory = ModelDirectory({"one": one, "other": other})
    reply = await directory.complete(request("other"))
    assert reply.model == "other"
    assert (one.begun.total(), other.begun.total()) == (0, 1)


async def test_an_unknown_model_is_named_with_those_that_are_known():
    directory = ModelDirectory({"scripted": ScriptedModel(), "local": ScriptedModel()})
    with pytest.raises(UnknownModel, match="'gpt' is not known here; known: local, scripted") as caught:
        await directory.complete(request("gpt"))
    assert caught.value.field == "model"
    assert str(directory.known) == "local, scripted"


async def test_a_provider_serves_every_name_that_begins_with_it():
    campus, local = ScriptedModel(), ScriptedModel()
    directory = ModelDirectory({"local": local, "campus:special": local}, {"campus": campus})
    for model in ("campus:qwen3", "campus:special", "local"):
        assert (await directory.complete(request(model))).model == model
    assert (campus.begun.total(), local.begun.total()) == (1, 2)
    with pytest.raises(UnknownModel, match="known here; known: campus:special, local, campus:…"):
        await directory.complete(request("other:qwen3"))
