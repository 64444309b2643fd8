"""The tree of errors is complete, and each class decides."""

import re
from collections.abc import Iterator

import pytest

from domain import errors
from domain.errors import AssayError


def tree(root: type[AssayError]) -> Iterator[type[AssayError]]:
    yield root
    for each in root.__subclasses__():
        yield from tree(each)


EVERYWHERE = list(tree(AssayError))
CLASSES = [each for each in EVERYWHERE if each.__module__ == errors.__name__]


def test_codes_are_unique() -> None:
    codes = [each.code for each in EVERYWHERE]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_class_is_a_condition_of_its_own(error: type[AssayError]) -> None:
    assert "code" in vars(error)
    assert error.code == re.sub(r"(?<!^)(?=[A-Z])", "_", error.__name__).lower()
    assert error.__doc__
    raised = error("What happened.", field="name")
    assert (str(raised), raised.message, raised.field) == ("What happened.", "What happened.", "name")


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_a_time_to_wait_is_given_for_what_may_be_tried_again_only(error: type[AssayError]) -> None:
    assert error.retryable == (error.retry_after_seconds is not None)
    assert error.retry_after_seconds is None or error.retry_after_seconds > 0


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    drawn: set[tuple[str, str]] = set()
    path = ["AssayError"]
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"([│ ├└─]*)── (\w+)", line):
            depth = len(match[1]) // 4 + 1
            path[depth:] = [match[2]]
            drawn.add((path[depth - 1], match[2]))
    assert drawn == {(each.__bases__[0].__name__, each.__name__) for each in CLASSES[1:]}
