"""Every kind of broken exam: a good one with one thing changed. The table of docs/exams.md is made of it.

A test sees to it that every mistake that the reader can note stands here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

GOOD = """\
title: Networks
language: en
questions:
  - id: q1
    type: multiple_choice
    prompt: Which layer routes?
    points: 1
    options: {A: Link, B: Internet}
    answer: B
  - id: q2
    type: exact
    prompt: Name the system.
    points: 1
    answer: DNS
    accept: [domain name system]
  - id: q3
    type: numeric
    prompt: How long?
    points: 2
    answer: 20
    tolerance: 2%
    unit: ms
  - id: q4
    type: essay
    prompt: Compare both.
    points: 3
    reference: One is reliable.
    criteria:
      - {id: c1, points: 2, description: Compares.}
      - {id: c2, points: 1, description: Judges.}
    guidelines: Ideas, not words.
    examples:
      - answer: Both work.
        points: {c1: 1, c2: 0}
"""
GOOD_JSON = """\
{
  "title": "Networks",
  "questions": [
    {
      "id": "q1",
      "type": "exact",
      "prompt": "Name it.",
      "points": 1,
      "answer": "DNS"
    }
  ]
}
"""


@dataclass(frozen=True)
class Broken:
    """A good exam in which `written` stands instead of `good`."""

    good: str
    written: str
    format: Literal["yaml", "json"] = "yaml"
    #: what the table shows, where the text itself is no sight
    shown: str = ""

    @property
    def content(self) -> bytes:
        """The whole file."""
        text = GOOD if self.format == "yaml" else GOOD_JSON
        if text.count(self.good) != 1:
            raise ValueError(f"{self.good!r} is not there once")
        # halves of characters stand for bytes that are no UTF-8
        return text.replace(self.good, self.written).encode("utf-8", "surrogateescape")


def _json(good: str, written: str, shown: str = "") -> Broken:
    return Broken(good, written, "json", shown)


#: kind of mistake → examples of it
BROKEN: dict[str, list[Broken]] = {
    "What YAML does not take": [
        Broken("    prompt: How long?", "\tprompt: How long?", shown="(a tab) prompt: How long?"),
        Broken("prompt: How long?", "prompt: Explain: how long?"),
        Broken("    points: 3\n", "      points: 3\n", shown="points: 3, indented by two more"),
        Broken("    points: 3\n", "   points: 3\n", shown="points: 3, indented by one less"),
        Broken("  - id: q2\n", "  id: q2\n", shown="id: q2 instead of - id: q2"),
        Broken("title: Networks", "title: 'Networks"),
        Broken("title: Networks", 'title: "C:\\data"'),
        Broken("title: Networks", 'title: "Networks" and more'),
        Broken("title: Networks", "title: @Networks"),
        Broken("title: Networks", "title: - Networks"),
        Broken("[domain name system]", "[domain name system"),
        Broken("{A: Link, B: Internet}", "{A: Link, B: Internet"),
        Broken("title: Networks\n", "Networks\n", shown="Networks (without title:)"),
        Broken("    guidelines: Ideas", "    Ideas", shown="Ideas, not words. (without guidelines:)"),
        Broken("guidelines: Ideas, not words.", "guidelines: | Ideas, not words."),
        Broken("{c1: 1, c2: 0}", "{c1: 1, c2: 0}\n author: me", shown="author: me, at the end, indented"),
        Broken("title: Networks", " title: Networks", shown="title: Networks, indented"),
        Broken("title: Networks", "title: !h!x Networks"),
        Broken("title: Networks", "title: Net\x07works", shown="title: Net(bell)works"),
        Broken("title: Networks", "title: Netw\udcf6rks", shown="a file in Latin-1"),
        Broken("questions:\n", "---\nquestions:\n", shown="--- in the middle"),
        Broken("answer: DNS", "answer: " + "[" * 40 + "]" * 40, shown="answer: [[[… forty deep"),
        Broken("answer: DNS", "answer: *name"),
        Broken("answer: DNS", "answer: !!python/name:os.system DNS"),
        Broken("language: en", "[a, b]: en"),
        Broken("language: en", "title: Twice"),
    ],
    "What JSON does not take": [
        _json('"answer": "DNS"\n', '"answer": "DNS",\n', '"answer": "DNS",  and then }'),
        _json('"title": "Networks",', '"title": "Networks"', "no comma after a field"),
        _json('"points": 1', '"points" 1'),
        _json('"answer": "DNS"', '"answer": DNS'),
        _json('"answer": "DNS"', '"answer": "D\nNS"', "a text over two lines"),
        _json('"DNS"\n    }\n  ]\n}\n', '"DNS', "a file that ends in a text"),
        _json('"answer": "DNS"', '"answer": "C:\\data"'),
        _json('"title"', "title"),
        _json('"title": "Networks",', '"title": "Networks"} , {', "two exams in one file"),
        _json('"answer": "DNS"', '"answer": ' + "[" * 9999 + "]" * 9999, '"answer": [[[… ten thousand deep'),
        _json('"points": 1', '"points": 1, "points": 2'),
    ],
    "Fields": [
        Broken("    points: 3\n", "", shown="no points"),
        Broken("    reference: One is reliable.\n", "", shown="no reference"),
        Broken("    answer: DNS\n", "", shown="no answer"),
        Broken("guidelines: Ideas", "guideline: Ideas"),
        Broken("unit: ms", "unit: ms\n    reference: 20 ms", shown="reference in a numeric question"),
        Broken("reference: One is reliable.", "reference: One.\n    answer: One."),
        Broken("answer: DNS", "answer: DNS\n    examples: []"),
        Broken("type: essay", "type: eassy"),
        Broken("id: q2", "id: q1"),
        Broken("id: q2", "id: question 2"),
        Broken("id: q2", "id: Q1"),
        Broken(GOOD[GOOD.index("questions:") :], "", shown="no questions"),
        Broken(GOOD[GOOD.index("questions:") :], "questions: []\n", shown="questions: []"),
        Broken(GOOD[GOOD.index("questions:") :], "questions: q1.yaml\n", shown="questions: q1.yaml"),
        Broken(GOOD, "- q1\n", shown="a list instead of fields"),
        Broken("    examples:\n", "    examples:\n      - Works.\n", shown="- Works. as an example"),
    ],
    "Texts": [
        Broken("answer: DNS", "answer: true"),
        Broken("answer: DNS", "answer:"),
        Broken("answer: DNS", 'answer: ""'),
        Broken("answer: DNS", "answer: [DNS]"),
        Broken("answer: DNS", "answer: 12345678901234567890"),
        Broken("title: Networks", 'title: "\\0"'),
        Broken("language: en", "language: the language of those who were born in England"),
    ],
    "Points and numbers": [
        Broken("points: 3", "points: 0"),
        Broken("points: 3", "points: 3000"),
        Broken("points: 3", "points: three"),
        Broken("points: 3", "points: 03"),
        Broken("points: 3", "points: 4"),
        Broken("points: 3", "points: .nan"),
        Broken("tolerance: 2%", "tolerance: -1"),
        Broken("tolerance: 2%", "tolerance: about 2"),
        Broken("tolerance: 2%", "tolerance: 0%"),
        Broken("answer: 20", "answer: twenty"),
        Broken("answer: 20", "answer: 20 ms"),
        Broken("unit: ms", "unit: m/s2"),
    ],
    "Choices": [
        Broken("answer: B\n", "answer: Internet\n"),
        Broken("answer: B\n", "answer: C\n"),
        Broken("{A: Link, B: Internet}", "{1: Link, 2: Internet}"),
        Broken("{A: Link, B: Internet}", "{B: Internet}"),
    ],
    "Graded examples": [
        Broken("{c1: 1, c2: 0}", "{c1: 3, c2: 0}"),
        Broken("{c1: 1, c2: 0}", "{c1: 1}"),
        Broken("{c1: 1, c2: 0}", "{c1: 1, c2: 0, c3: 1}"),
        Broken("{c1: 1, c2: 0}", "4"),
    ],
}  # fmt: skip


def broken_exams() -> Iterator[Broken]:
    """All of them."""
    for each in BROKEN.values():
        yield from each
