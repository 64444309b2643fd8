"""The page of a report shows everything, obeys no text of it, and can be read by everybody."""

import base64
import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from api.html import CONTENT_SECURITY_POLICY
from api.report_page import MAX_QUEUE_ENTRIES, MAX_QUOTE_LENGTH, REMEDIES, REMEDY, report_page
from domain.errors import AssayError
from tests.api.report_documents import FOREIGN, SCRIPT, a_report, criterion, queued, submission

NOW = datetime(2026, 1, 12, 10, 30, tzinfo=UTC)
_VOID = ("meta", "br", "rect", "line")


class Page(HTMLParser):
    """What a browser finds: elements with their attributes, the text, and how deep they are nested."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self.open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.parts.append(data)

    @property
    def text(self) -> str:
        """All text with single spaces."""
        return " ".join(" ".join(self.parts).split())

    def all(self, *tags: str) -> Iterator[dict[str, str | None]]:
        return (attributes for tag, attributes in self.elements if tag in tags)


def page(**given_: Any) -> Page:
    return Page(report_page(a_report(**given_), generated_at=NOW))


def test_no_text_becomes_an_element_or_an_attribute() -> None:
    shown = page()

    assert shown.open == []
    assert list(shown.all("script", "link", "img", "iframe", "object", "base", "form")) == []
    for _, attributes in shown.elements:
        assert not any(name.startswith("on") or name in ("style", "src", "href") for name in attributes)
    assert SCRIPT in shown.text


TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


@settings(max_examples=40)
@given(name=TEXTS, quote=TEXTS, title=TEXTS)
def test_whatever_students_and_teachers_write_the_page_has_the_same_elements(
    name: str, quote: str, title: str
) -> None:
    def made(name: str, quote: str, title: str) -> Page:
        entry = queued(name)
        entry["questions"][0]["criteria"] = [criterion(quote=quote or "q", reason=quote)]
        batch = a_report()["batch"] | {"exam_title": title or "t"}
        return page(batch=batch, review_queue=[entry], submissions=[submission(name)])

    assert made(name, quote, title).elements == made("n", "q", "t").elements


def test_the_policy_lets_in_the_one_style_and_nothing_else() -> None:
    shown = page()
    (style,) = re.findall(r"<style>(.*?)</style>", shown.source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()

    assert CONTENT_SECURITY_POLICY.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    policies = [each["content"] for each in shown.all("meta") if "http-equiv" in each]
    assert policies == [CONTENT_SECURITY_POLICY]


def test_the_style_fetches_nothing() -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", page().source, re.DOTALL)

    assert not re.search(r"url\(|@import|https?:", style)


def test_a_name_that_turns_the_text_about_is_shown_as_what_it_is() -> None:
    shown = page()

    assert "\u202e" not in shown.source
    assert "exam\ufffdtxt.exe" in shown.text


def test_everything_that_a_teaching_team_asks_is_there() -> None:
    text = page().text

    for said in (
        "Advisory marks.",
        "2026-01-12 09:02 UTC",
        "Generated 2026-01-12 10:30 UTC",
        "1.75 of 4",
        "1.62 to 1.88",
        "12,345 in, 678 out",
        "not recorded",
        "1 h 2 min",
        "version 3",
        "说明双方确认初始序号。",
        FOREIGN,
        "suspected injection, low confidence c1",
        "low confidence × 2, suspected injection",
        "No quote from the answer.",
        "Correct the file as its message says",
    ):
        assert said in text, said
    assert "Still running" not in text


def codes(of: type[AssayError]) -> Iterator[str]:
    yield of.code
    for each in of.__subclasses__():
        yield from codes(each)


def test_every_remedy_is_one_for_an_error_that_there_is() -> None:
    assert REMEDIES.keys() <= set(codes(AssayError))


def test_a_failure_without_a_remedy_of_its_own_has_the_general_one() -> None:
    failures = [{"code": "saga_step_refused", "count": 2, "message": None}]

    assert REMEDY in page(failures=failures).text


def test_the_cost_is_shown_in_dollars_where_there_is_one() -> None:
    usage = {"tokens_in": 1, "tokens_out": 1, "cost_nanodollars": 1_234_500_000}

    assert "$1.2345" in page(usage=usage).text


def test_a_page_of_a_running_batch_says_that_its_figures_will_change() -> None:
    batch = a_report()["batch"] | {"status": "scattering"}

    assert "Still running." in page(batch=batch).text


def test_what_is_left_out_is_said() -> None:
    many = [queued(f"s{n}.txt") for n in range(MAX_QUEUE_ENTRIES + 20)]
    long_ = criterion(quote="a" * (MAX_QUOTE_LENGTH + 1))
    many[0]["questions"][0]["criteria"] = [long_]
    text = page(review_queue=many, needs_review=700).text

    assert f"The first {MAX_QUEUE_ENTRIES} of 700;" in text
    assert f"evidence of {len(many)}." in text
    assert "s99.txt" in text
    assert "s100.txt" not in text
    assert f"{'a' * MAX_QUOTE_LENGTH} […]" in text


def test_headings_tables_and_languages_are_marked_for_those_who_cannot_see() -> None:
    shown = page()

    levels = [int(tag[1]) for tag, _ in shown.elements if re.fullmatch("h[1-6]", tag)]
    assert (levels[0], levels.count(1)) == (1, 1)
    assert all(after <= before + 1 for before, after in pairwise(levels))
    tags = [tag for tag, _ in shown.elements]
    assert tags.count("table") == tags.count("caption") == tags.count("thead") > 3
    assert all(each.get("scope") in ("col", "row") for each in shown.all("th"))
    assert [each["lang"] for each in shown.all("html")] == ["en"]
    assert [each["lang"] for each in shown.all("h1")] == ["zh"]
    assert {each["lang"] for each in shown.all("blockquote")} == {"zh"}


def test_an_exam_whose_language_is_none_is_of_an_undetermined_one() -> None:
    batch = a_report()["batch"] | {"language": '"><b>'}

    assert [each["lang"] for each in page(batch=batch).all("h1")] == ["und"]


def test_a_batch_without_any_mark_has_a_page() -> None:
    nothing = a_report(
        scores={"graded": 0, "mean": None, "median": None, "lowest": None, "highest": None},
        questions=[],
        criteria_hardest_first=[],
        confidence={"criteria": 0, "mean": None, "bins": []},
        review_reasons=[],
        review_queue=[],
        failures=[],
        submissions=[],
        total_files=0,
        needs_review=0,
        timing={"opened_at": "2026-01-12T08:00:00+00:00", "completed_at": None, "duration_seconds": None},
    )
    shown = Page(report_page(nothing, generated_at=NOW))

    assert "0 files" in shown.text
    assert list(shown.all("svg")) == []
