"""The parent's side of parsing: processes that are kept from log to log, and replaced when they end."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

import structlog

from activities.parsing.process import ParsedFigures, ParseTask
from domain.errors import AssayError, Defect, ParserLost

#: a parser says five times a second where it is; one that hangs is ended after this
STALL_SECONDS = 60.0


class ParserProcesses:
    """At most `count` processes, started by `command` when they are first needed; ended with the block.

    A process is given this one's environment, but for what the settings keep secret.
    """

    def __init__(self, command: Sequence[str], count: int, *, stall_seconds: float = STALL_SECONDS) -> None:
        self._command = tuple(command)
        self._free = asyncio.Semaphore(count)
        self._stall_seconds = stall_seconds
        self._idle: list[_Process] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(process.end() for process in self._idle))
        self._idle.clear()

    async def parse(self, task: ParseTask, tell: Callable[[Mapping[str, int]], None]) -> ParsedFigures:
        """Have a log parsed, once a process is free; `tell` hears of its position.

        Raises what parsing raises, and `ParserLost` for a process that ended or hangs. A cancelled call ends
        its process.
        """
        async with self._free, self._process() as process:
            answer = await process.answer(task, tell, self._stall_seconds)
        if "failure" in answer:
            raise _error(answer["failure"])
        return ParsedFigures(**answer["figures"])

    @asynccontextmanager
    async def _process(self) -> AsyncIterator["_Process"]:
        """A process that lives; it is kept only if all goes well."""
        process = await self._taken()
        try:
            yield process
        except BaseException:
            await process.end()
            raise
        self._idle.append(process)

    async def _taken(self) -> "_Process":
        while self._idle:
            process = self._idle.pop()
            if process.lives:
                return process
            await process.end()
        return await _Process.started(self._command)


class _Process:
    """One parser."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def started(cls, command: Sequence[str]) -> "_Process":
        return cls(
            await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=_environment(),
            )
        )

    @property
    def lives(self) -> bool:
        return self._process.returncode is None

    async def answer(
        self, task: ParseTask, tell: Callable[[Mapping[str, int]], None], stall_seconds: float
    ) -> dict[str, Any]:
        """Its last word on the task."""
        assert self._process.stdin is not None
        with suppress(ConnectionError):  # it is told by the end of its answers
            self._process.stdin.write(json.dumps(asdict(task)).encode() + b"\n")
            await self._process.stdin.drain()
        while True:
            said = await self._said(stall_seconds)
            if "position" not in said:
                return said
            tell(said["position"])

    async def _said(self, stall_seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(stall_seconds):
                line = await self._process.stdout.readline()
        except TimeoutError:
            structlog.get_logger("assay.parsing").error("parser_hangs", seconds=stall_seconds)
            raise ParserLost(f"The parser said nothing for {stall_seconds:g} s.") from None
        if not line.endswith(b"\n"):
            raise ParserLost("The process that parsed the log ended before it was done.")
        said: dict[str, Any] = json.loads(line)
        return said

    async def end(self) -> None:
        """Kill it; a cancelled task may wait here, as a killed process ends at once."""
        if self.lives:
            with suppress(ProcessLookupError):
                self._process.kill()
        await self._process.wait()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ASSAY_")}


def _error(failure: Mapping[str, Any]) -> AssayError:
    kinds = {kind.code: kind for kind in _all_kinds(AssayError)}
    kind = kinds.get(failure["code"], Defect)
    return kind(failure["message"], field=failure["field"])


def _all_kinds(kind: type[AssayError]) -> list[type[AssayError]]:
    return [kind, *(each for below in kind.__subclasses__() for each in _all_kinds(below))]
