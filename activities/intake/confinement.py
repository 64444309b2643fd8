"""The parent's side of confined reading: starts the child, waits so long and no longer, and kills it."""

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import structlog

from domain.errors import UnreadableSubmission

#: JSON writes a character in up to 12 bytes
_MAX_ANSWER_BYTES = 32 * 1024**2
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Confinement:
    """What one child may take."""

    seconds: int
    memory_bytes: int

    async def read(self, reader: str, content: bytes) -> dict[str, Any]:
        """The child's answer; raises `UnreadableSubmission` if it gives none in time, or dies.

        A cancelled call leaves no child behind.
        """
        with _as_file(content) as source:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-m", "activities.intake.confined"),
                *(reader, str(os.getpid()), str(self.seconds), str(self.memory_bytes)),
                stdin=source,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            )
        try:
            async with asyncio.timeout(self.seconds):
                written = await _output(process)
                await process.wait()
        except TimeoutError:
            raise UnreadableSubmission(
                f"Reading the file takes longer than {self.seconds} s. Save it once more as .docx or PDF, "
                "with the answers alone, and upload that file.",
                field="file",
            ) from None
        finally:
            await _end(process)
        return self._answer(written, process.returncode)

    def _answer(self, written: bytes, returncode: int | None) -> dict[str, Any]:
        answer: dict[str, Any] = {"failed": f"exit {returncode}"}
        if returncode == 0:
            with suppress(ValueError):
                answer = json.loads(written)
        if "unreadable" in answer:
            raise UnreadableSubmission(str(answer["unreadable"]), field="file")
        if "failed" in answer:
            structlog.get_logger("assay.intake").warning("reader_failed", reason=str(answer["failed"])[:100])
            raise UnreadableSubmission(
                "The file is damaged, or larger in memory than can be read. "
                "Save it once more as .docx or PDF and upload that file.",
                field="file",
            )
        return answer


@contextmanager
def _as_file(content: bytes) -> Iterator[int]:
    """The bytes as an open file in memory: nobody waits for a pipe, and no disk sees them."""
    descriptor = os.memfd_create("submission")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


async def _output(process: asyncio.subprocess.Process) -> bytes:
    assert process.stdout is not None
    written = bytearray()
    while chunk := await process.stdout.read(_CHUNK_BYTES):
        written += chunk
        if len(written) > _MAX_ANSWER_BYTES:
            break
    return bytes(written)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        # a cancelled task may wait here: a killed child ends at once
        await process.wait()
