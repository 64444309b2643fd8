"""Templates: what is one and what is two, by which id, and with how much memory."""

import random
import string
import tracemalloc
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from activities.parsing.masks import masked, text_of, without_digits
from activities.parsing.mining import Miner, template_id
from domain.logs import Level, LogLine, TemplateCount

START = datetime(2026, 3, 1, tzinfo=UTC)


def mined(messages: Iterable[str], *, limit: int = 5_000) -> dict[str, TemplateCount]:
    miner = Miner(limit)
    for number, message in enumerate(messages, 1):
        miner.add(LogLine(number, message, message))
    return {each.text: each for each in miner.templates()}


def a_template(message: str) -> str:
    line = masked(without_digits(message))
    return text_of(line.signs, line.words)


@pytest.mark.parametrize(
    ("message", "template"),
    [
        ("took 12.5 ms of 300", "took <*> ms of <*>"),
        ("from 10.0.0.1:8080 to fe80::1%eth0 port 22", "from <*> to <*> port <*>"),
        ("via aa:bb:cc:dd:ee:01", "via <*>"),
        ("at 2026-03-01T10:00:00.123Z and Fri Jun 17 07:07:00 2005 and 07:07:00", "at <*> and <*> and <*>"),
        ("id 9f2b8c1d-0000-4000-8000-123456789abc of 0x7ffee4 or 7ac4f1e", "id <*> of <*> or <*>"),
        ("GET https://updates.example.org/v1?x=1 to /var/lib/ota/slot", "GET <*> to <*>"),
        (r"wrote C:\logs\today.txt", "wrote <*>"),
        ("user=root uid=0, (anonymous)", "user=root uid=<*>, (anonymous)"),
        ("at 12.4V or 85% after 120ms", "at <*> or <*> after <*>"),
        ("parts 3, 5, 8 of 9", "parts <*> of <*>"),
        ("blk_-77 blk_123 blk_310 deleted", "<*> deleted"),
        ('tag="View Lock" held', 'tag="View Lock" held'),
        ('msg="slot 3 failed"', 'msg="slot <*> failed"'),
        ("电池电压 过低: 10.5", "电池电压 过低: <*>"),
    ],
)
def test_what_differs_by_chance_is_masked(message: str, template: str) -> None:
    assert a_template(message) == template


@pytest.mark.parametrize("code", ["P0301", "E12", "ssh2", "slot-1", "CAN0"])
def test_a_name_with_a_number_says_what_is_meant(code: str) -> None:
    other = code[:-1] + "9"
    assert set(mined([f"fault {code} stored", f"fault {other} stored"])) == {
        f"fault {code} stored",
        f"fault {other} stored",
    }


def test_a_few_words_at_one_place_are_findings_and_many_are_a_parameter() -> None:
    states = [f"slot switch has now {word}" for word in ("begun", "ended", "failed")]
    names = [f"session of user {name} was opened" for name in ("ann", "bob", "cid", "dan", "eve", "fay")]
    templates = mined([*states, *names])
    assert set(templates) == {*states, "session of user <*> was opened"}
    assert templates["session of user <*> was opened"].count == len(names)


def test_yes_and_no_are_never_a_parameter_and_neither_is_a_first_word() -> None:
    pairs = [f"signature of the image valid: {word}" for word in ("true", "false") * 5]
    first = [
        f"{word} of the whole image" for word in ("download", "check", "copy", "removal", "signing", "loss")
    ]
    assert len(mined([*pairs, *first])) == 2 + len(first)


def test_where_little_else_is_constant_many_words_stay_findings() -> None:
    states = [
        f"state: {word}" for word in ("idle", "loading", "checking", "writing", "booting", "failed", "done")
    ]
    assert len(mined(states)) == len(states)


def test_a_template_counts_its_lines_with_times_levels_and_first_examples() -> None:
    miner = Miner()
    levels = (Level.INFO, Level.ERROR, Level.ERROR, None, Level.INFO)
    for number, level in enumerate(levels):
        at = START + timedelta(seconds=(3, 1, 2, 9, 5)[number])
        text = f"{at} retry {number} of part {number * 7}"
        miner.add(LogLine(10 + number, text, text.partition("+00:00 ")[2], at, level, "a.log"))
    (template,) = miner.templates()
    assert (template.text, template.count) == ("retry <*> of part <*>", 5)
    assert template.level is Level.ERROR  # as often as information, and graver
    assert (template.first_at, template.last_at) == ("2026-03-01T00:00:01+00:00", "2026-03-01T00:00:09+00:00")
    assert [(quote.line, quote.member) for quote in template.examples] == [
        (10, "a.log"),
        (11, "a.log"),
        (12, "a.log"),
    ]
    assert template.examples[0].text.endswith("retry 0 of part 0")


def test_examples_of_templates_that_became_one_are_the_first_of_its_lines() -> None:
    names = ["eve", "eve", "ann", "bob", "cid", "dan"]
    (template,) = mined(f"session of user {name} was opened" for name in names).values()
    assert [quote.line for quote in template.examples] == [1, 2, 3]


def test_an_id_is_made_of_the_text_alone() -> None:
    one, other = mined(["retry 1 of part 7"] * 3), mined(["something else", "retry 9 of part 1"])
    text = "retry <*> of part <*>"
    assert one[text].template_id == other[text].template_id == template_id(text)
    assert one[text].template_id != other["something else"].template_id


def hostile(seed: int) -> Iterator[str]:
    """Lines that no two share a template, without end."""
    drawn = random.Random(seed)  # noqa: S311  # lines, not secrets
    while True:
        words = ["".join(drawn.choices(string.ascii_letters, k=drawn.randrange(1, 120))) for _ in range(8)]
        yield "".join(word + drawn.choice(" =:,;()[]|\"'") * drawn.randrange(1, 4) for word in words)


def test_endless_lines_without_a_template_take_bounded_memory_and_are_said_to_be_left_out() -> None:
    miner, lines = Miner(limit=60), hostile(1)
    tracemalloc.start()
    try:
        peaks = []
        for _ in range(2):
            for _ in range(300):
                text = next(lines)
                miner.add(LogLine(miner.lines + 1, text, text))
            peaks.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    templates = miner.templates()
    assert len(templates) <= 60
    assert miner.left_out > 300
    assert sum(each.count for each in templates) + miner.left_out == miner.lines == 600
    assert miner.first_left_out is not None
    assert peaks[1] - peaks[0] < 4 * 1024**2  # of which the remembered messages are most


def test_lines_of_known_templates_are_counted_when_there_is_room_for_no_more() -> None:
    miner, lines = Miner(limit=100), hostile(2)
    for _ in range(500):
        miner.add(LogLine(1, "download of part 7 failed", "download of part 7 failed"))
        miner.add(LogLine(1, text := next(lines), text))
    counts = {each.text: each.count for each in miner.templates()}
    assert counts["download of part <*> failed"] == 500


def test_a_line_of_any_length_costs_no_more_than_its_beginning() -> None:
    (text,) = mined(["upload of " + "many parts " * 100_000] * 2)
    assert len(text) <= 1_000
