"""Every condition has a status and a problem document, and a failure of ours shows nothing of its inside."""

from collections.abc import Iterator

import pytest

from api.errors import MEDIA_TYPE, answer_defect, answer_error, problem_of, status_of
from domain.errors import (
    AssayError,
    BatchFrozen,
    BudgetExhausted,
    CorruptCheckpoint,
    Defect,
    DigestMismatch,
    EpochSuperseded,
    Forbidden,
    InvalidExam,
    LimitExceeded,
    NotFound,
    PoolExhausted,
    TemporalUnavailable,
    Unauthenticated,
    UnknownModel,
)

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def all_conditions(root: type[AssayError] = AssayError) -> Iterator[type[AssayError]]:
    yield root
    for each in root.__subclasses__():
        # what the command line makes of an answer is no condition of the API's own
        if not each.__module__.startswith("runtime"):
            yield from all_conditions(each)


@pytest.mark.parametrize("condition", sorted(set(all_conditions()), key=lambda each: each.__name__))
def test_every_condition_is_answered_with_a_problem_document(condition: type[AssayError]) -> None:
    answer = answer_error({"type": "http"}, condition("What happened.", field="f"))

    assert answer.status_code in {401, 402, 403, 404, 409, 413, 422, 429, 500, 503}
    assert answer.media_type == MEDIA_TYPE
    document = problem_of(condition("What happened.", field="f"), TRACE)
    assert document["status"] == answer.status_code
    assert document["code"] == condition.code
    assert document["field"] == "f"
    assert document["trace_id"] == TRACE
    assert document["type"] == f"urn:assay:problem:{condition.code}"
    assert document["title"]


@pytest.mark.parametrize(
    ("condition", "status"),
    [
        (InvalidExam, 422),
        (UnknownModel, 422),
        (Unauthenticated, 401),
        (Forbidden, 403),
        (NotFound, 404),
        (BatchFrozen, 409),
        (DigestMismatch, 409),
        (EpochSuperseded, 409),
        (BudgetExhausted, 402),
        (LimitExceeded, 413),
        (PoolExhausted, 503),
        (TemporalUnavailable, 503),
        (CorruptCheckpoint, 500),
        (Defect, 500),
    ],
)
def test_the_nearest_class_decides_the_status(condition: type[AssayError], status: int) -> None:
    assert status_of(condition) == status


def test_a_class_made_tomorrow_has_its_parents_status() -> None:
    class Later(BatchFrozen):
        code = "later"

    assert status_of(Later) == 409


def test_an_absent_resource_says_when_to_try_again() -> None:
    answer = answer_error({"type": "http"}, TemporalUnavailable("Temporal does not answer."))

    assert answer.headers["retry-after"] == "5"


def test_a_missing_key_says_how_to_authenticate() -> None:
    answer = answer_error({"type": "http"}, Unauthenticated("No key."))

    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("error", [Defect("password=hunter2"), CorruptCheckpoint("password=hunter2")])
def test_a_failure_of_ours_shows_nothing_of_its_inside(error: AssayError) -> None:
    assert b"hunter2" not in bytes(answer_error({"type": "http"}, error).body)


def test_an_error_that_nobody_foresaw_shows_nothing_of_its_inside() -> None:
    answer = answer_defect({"type": "http"}, RuntimeError("password=hunter2"))

    assert answer.status_code == 500
    assert b"hunter2" not in bytes(answer.body)
    assert b'"code":"internal_error"' in bytes(answer.body)
