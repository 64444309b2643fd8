"""Questions of many callers, asked in one go: a visit to a server costs more than one question more."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")

#: of one visit; what comes beyond it goes with the next
MOST_AT_ONCE = 200


class Bunches(Generic[Question, Answer]):
    """One visit at a time: whoever asks meanwhile goes with the next one, in the order of asking.

    `visit` gives an answer to each question; an exception among them is raised to whoever asked that question,
    one that it raises to all of them. As many questions wait as there are callers: each waits for its own.
    """

    def __init__(
        self,
        visit: Callable[[Sequence[Question]], Awaitable[Sequence[Answer | Exception]]],
        at_most: int = MOST_AT_ONCE,
    ) -> None:
        self._visit = visit
        self._at_most = at_most
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._visiting: asyncio.Task[None] | None = None

    def ask(self, question: Question) -> "asyncio.Future[Answer]":
        """The answer to come; a question whose answer was cancelled before its visit began is not asked."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, answer))
        if self._visiting is None or self._visiting.done():
            self._visiting = asyncio.create_task(self._visit_until_all_have_asked())
        return answer

    async def _visit_until_all_have_asked(self) -> None:
        while self._waiting:
            bunch = [each for each in self._waiting[: self._at_most] if not each[1].done()]
            del self._waiting[: self._at_most]
            if bunch:
                await self._answer(bunch)

    async def _answer(self, bunch: Sequence[tuple[Question, "asyncio.Future[Answer]"]]) -> None:
        found: Sequence[Answer | Exception]
        try:
            found = await self._visit([question for question, _ in bunch])
        except Exception as error:  # noqa: BLE001  # whatever it is, it is for those who asked
            found = [error] * len(bunch)
        except BaseException:
            for _, answer in bunch:
                answer.cancel()
            raise
        for (_, answer), each in zip(bunch, found, strict=True):
            if not answer.done():
                _end(answer, each)


def _end(answer: "asyncio.Future[Answer]", found: Answer | Exception) -> None:
    if isinstance(found, Exception):
        answer.set_exception(found)
    else:
        answer.set_result(found)
