"""The scripted model does what its script says and counts its calls."""

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest

from domain.completion import CompletionRequest, FinishReason, Usage
from domain.errors import InvalidInput, ModelRefused, ModelUnavailable
from domain.exam import Criterion, Question, QuestionType
from domain.identity import LogicalStep
from gateway.scripted import BAD_QUOTE, Rule, Script, ScriptedModel, first_sentence
from tests.gateway.chatting import Listener, chat, choice

ROOT = Path(__file__).parents[2]


def request(question_id: str = "q1", call: int = 1, answer: str = "It rains. It pours.") -> CompletionRequest:
    question = Question(question_id, QuestionType.ESSAY, "Why?", 2.0, (Criterion("c1", 2.0, "One."),))
    return CompletionRequest(
        LogicalStep("f", 1, question_id, "all", "first"), call, "scripted", question, answer
    )


async def entry(script: Script, **fields):
    reply = await ScriptedModel(script).complete(request(**fields))
    return json.loads(reply.text)["criteria"][0]


@pytest.mark.parametrize(("policy", "points"), [("full", 2.0), ("half", 1.0), ("zero", 0.0)])
async def test_a_policy_gives_its_share_and_quotes_the_first_sentence(policy, points):
    given = await entry(Script(reply=policy))
    assert (given["points"], given["quote"], given["confidence"]) == (points, "It rains.", 0.9)


async def test_the_first_rule_that_matches_is_taken():
    script = Script(rules=(Rule("f/g1/q2/*/2", reply="zero"), Rule("q2", reply="half")))
    assert [(await entry(script, question_id="q2", call=call))["points"] for call in (1, 2)] == [1.0, 0.0]
    assert (await entry(script))["points"] == 2.0


async def test_a_literal_reply_is_given_as_it_is():
    model = ScriptedModel(Script(rules=(Rule(reply="just text"),)))
    assert (await model.complete(request())).text == "just text"


async def test_a_chat_is_answered_with_what_its_user_said_last():
    model = ScriptedModel()
    reply = await model.complete(chat("scripted"))
    assert reply.text == "Is it warm in Rome now?"
    assert reply.usage == Usage(tokens_in=8, tokens_out=6)
    assert choice(reply)["message"]["content"] == reply.text
    parts = {"role": "user", "content": [{"type": "text", "text": "In parts?"}, {"type": "image_url"}]}
    assert (
        await model.complete(chat("scripted", parts, {"role": "assistant", "content": "x"}))
    ).text == "In parts?"


async def test_a_chat_may_have_rules_by_its_key_and_a_literal_reply():
    model = ScriptedModel(Script(rules=(Rule("q1", reply="zero"), Rule("client/*", reply="Quite  so.\n"))))
    listener = Listener()
    reply = await model.stream(chat("scripted"), listener)
    assert reply.text == listener.text == "Quite  so.\n"
    assert [len(chunk) for chunk in listener.chunks] == [1, 1, 1]


async def test_a_chats_reply_is_cut_at_its_limit():
    listener = Listener()
    reply = await ScriptedModel().stream(chat("scripted", max_tokens=3), listener)
    assert (reply.text, reply.finish_reason) == ("Is it warm", FinishReason.LENGTH)
    assert (listener.text, listener.finished, reply.usage.tokens_out) == (reply.text, ["length"], 3)


async def test_a_reply_is_written_as_slowly_as_the_script_says():
    begun = time.perf_counter()
    await ScriptedModel(Script(word_seconds=0.01)).stream(chat("scripted"), Listener())
    assert time.perf_counter() - begun >= 0.06


async def test_a_stream_in_doubt_breaks_off_in_the_middle():
    listener = Listener()
    model = ScriptedModel(Script(rules=(Rule(fail="in_doubt"),)))
    with pytest.raises(ModelUnavailable) as caught:
        await model.stream(chat("scripted"), listener)
    assert (caught.value.in_doubt, listener.text) == (True, "Is it warm ")
    assert not model.returned


async def test_failures_are_made_to_order():
    with pytest.raises(ModelUnavailable):
        await entry(Script(rules=(Rule(fail="model_unavailable"),)))
    with pytest.raises(ModelRefused):
        await entry(Script(rules=(Rule(fail="model_refused"),)))
    with pytest.raises(ValueError, match="Expecting"):
        await entry(Script(rules=(Rule(fail="invalid_json"),)))
    assert (await entry(Script(rules=(Rule(fail="bad_quote"),))))["quote"] == BAD_QUOTE


async def test_a_rule_may_hold_for_its_first_calls_only():
    model = ScriptedModel(Script(rules=(Rule(fail="model_unavailable", times=2),)))
    for _ in range(2):
        with pytest.raises(ModelUnavailable):
            await model.complete(request())
    await model.complete(request())
    assert (model.begun.total(), model.returned.total()) == (3, 1)


async def test_latency_and_hanging_take_their_time():
    model = ScriptedModel(Script(latency_seconds=0.05, rules=(Rule("q2", hang_seconds=30),)))
    begun = time.perf_counter()
    await model.complete(request())
    assert time.perf_counter() - begun >= 0.05
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(model.complete(request("q2")), 0.1)
    assert "f/g1/q2/all/first/1" not in model.returned


async def test_calls_are_logged_across_processes(tmp_path):
    log = tmp_path / "calls.jsonl"
    model = ScriptedModel(Script(calls_log=str(log), rules=(Rule("q2", fail="model_unavailable"),)))
    await model.complete(request())
    with pytest.raises(ModelUnavailable):
        await model.complete(request("q2"))
    code = f"from gateway.scripted import append_line; append_line({str(log)!r}, '{{\"pid\": 1}}')"
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=ROOT)
    assert await other.wait() == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line.get("key"), line.get("event")) for line in lines] == [
        ("f/g1/q1/all/first/1", "begun"),
        ("f/g1/q1/all/first/1", "returned"),
        ("f/g1/q2/all/first/1", "begun"),
        (None, None),
    ]
    assert {"key", "event", "pid", "time"} == lines[0].keys()


def test_a_script_is_loaded_from_yaml_and_json(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "latency_seconds: 0.5\nrules:\n- {match: q1, fail: bad_quote, times: 1}\n"
    )
    (tmp_path / "b.json").write_text('{"reply": "half", "calls_log": "x"}')
    (tmp_path / "c.yaml").write_text("")
    assert Script.load(tmp_path / "a.yaml") == Script(
        latency_seconds=0.5, rules=(Rule("q1", fail="bad_quote", times=1),)
    )
    assert Script.load(tmp_path / "b.json") == Script(reply="half", calls_log="x")
    assert Script.load(str(tmp_path / "c.yaml")) == Script()


@pytest.mark.parametrize(
    "text", ["latency: 1", "rules: [{wen: 1}]", "[]", "rules: [{fail: explode}]", "rules: [1]"]
)
def test_a_script_with_an_unknown_field_is_refused(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(InvalidInput):
        Script.load(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("One. Two.", "One."), ("pi is 3.14 here! yes", "pi is 3.14 here!"), ("第一。第二。", "第一。"),
        ("\n\n  line\nnext", "line"), ("", ""), ("x" * 400, "x" * 300),
    ],
)  # fmt: skip
def test_the_first_sentence_is_verbatim(answer, sentence):
    assert first_sentence(answer) == sentence
    assert sentence in answer
