"""Ids and keys derived from identity, maker and parser side by side; never random."""

import re
from dataclasses import dataclass
from typing import Self
from uuid import UUID

_SEGMENT = re.compile(r"[A-Za-z0-9_.-]+")
_GENERATION = re.compile(r"g[1-9][0-9]*")
#: a generation that fits into Postgres's integer
_WORKFLOW = re.compile(
    rf"batch/(?P<batch>{_SEGMENT.pattern})(/g(?P<generation>[1-9][0-9]{{0,8}}))?"
    rf"(/file/(?P<file>{_SEGMENT.pattern})|/(?P<diagnosis>diagnosis))?"
)


def batch_workflow_id(batch_id: str, generation: int) -> str:
    """The id of the workflow that runs one generation of a batch."""
    return f"batch/{batch_id}" if generation == 1 else f"batch/{batch_id}/g{generation}"


def window_workflow_id(batch_id: str, generation: int, index: int) -> str:
    """The id of the workflow that runs one window of a batch."""
    return f"batch/{batch_id}/g{generation}/window/{index}"


def file_workflow_id(batch_id: str, file_id: str, generation: int) -> str:
    """The id of the workflow that assesses one file in one generation."""
    return f"{batch_workflow_id(batch_id, generation)}/file/{file_id}"


def diagnosis_workflow_id(batch_id: str, generation: int) -> str:
    """The id of the workflow that diagnoses a batch in one generation."""
    return f"{batch_workflow_id(batch_id, generation)}/diagnosis"


@dataclass(frozen=True)
class WorkflowRef:
    """Which batch's, file's or diagnosis' workflow an id names, and of which generation."""

    batch_id: str
    file_id: str | None = None
    generation: int = 1
    #: the one that diagnoses the batch; it has no file
    diagnosis: bool = False

    def __str__(self) -> str:
        if self.diagnosis:
            return diagnosis_workflow_id(self.batch_id, self.generation)
        if self.file_id is None:
            return batch_workflow_id(self.batch_id, self.generation)
        return file_workflow_id(self.batch_id, self.file_id, self.generation)

    @classmethod
    def parse(cls, text: str) -> Self:
        """The workflow that `str` wrote; `ValueError` for any other id, a window's among them."""
        found = _WORKFLOW.fullmatch(text)
        if found is None:
            raise ValueError(f"{text[:100]!r} is no workflow of a batch, a file or a diagnosis")
        diagnosis = found["diagnosis"] is not None
        ref = cls(found["batch"], found["file"], int(found["generation"] or 1), diagnosis)
        if str(ref) != text:
            raise ValueError(f"{text[:100]!r} is written {str(ref)!r}")
        return ref


def object_key(tenant_id: str, batch_id: str, file_id: str, sha256: str) -> str:
    """Where a file's bytes are; made of ids alone, so that no path ever comes from a name."""
    return f"{tenant_id}/{batch_id}/{file_id}/{sha256}"


def parsed_log_key(tenant_id: str, batch_id: str, file_id: str, generation: int) -> str:
    """Where a log's parser writes what it found; who comes later writes over it."""
    return f"{tenant_id}/{batch_id}/{file_id}/g{generation}/proposed"


def recorded_log_key(tenant_id: str, batch_id: str, file_id: str, generation: int, sha256: str) -> str:
    """Where the document of a parsed log is kept once it is recorded."""
    return f"{tenant_id}/{batch_id}/{file_id}/g{generation}/parsed/{sha256}"


def summary_key(tenant_id: str, batch_id: str, generation: int, sha256: str) -> str:
    """Where the summary of a gathered batch is."""
    return f"{tenant_id}/{batch_id}/g{generation}/summary/{sha256}"


def diagnosis_saga_id(batch_id: str, generation: int) -> str:
    """The id of the saga that makes one diagnosis official."""
    return f"{batch_id}/g{generation}/diagnosis"


def saga_id(file_id: str, generation: int) -> str:
    """The id of the saga that persists one assessment."""
    return f"{file_id}/g{generation}/persist"


def override_saga_id(submission_id: str, override_id: str) -> str:
    """The id of the saga of one override."""
    return f"{submission_id}/override/{override_id}"


def override_workflow_id(submission_id: str, override_id: str) -> str:
    """The id of the workflow that overrides a mark."""
    return f"submission/{submission_id}/override/{override_id}"


@dataclass(frozen=True)
class LogicalStep:
    """What a model call is for, whoever makes it and however often it is tried (L6)."""

    file_id: str
    generation: int
    question_id: str
    criterion_id: str
    reader: str

    def call(self, number: int) -> str:
        """The idempotency key of the step's call of that number, counted from 1."""
        return f"{self}/{number}"

    def __str__(self) -> str:
        return f"{self.file_id}/g{self.generation}/{self.question_id}/{self.criterion_id}/{self.reader}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The step that `str` wrote; `ValueError` for anything else."""
        file_id, generation, question_id, criterion_id, reader = text.split("/")
        if not all(map(is_segment, (file_id, question_id, criterion_id, reader))):
            raise ValueError(f"{text!r} is no logical step")
        if not _GENERATION.fullmatch(generation):
            raise ValueError(f"{generation!r} is no generation; it looks like g1")
        return cls(file_id, int(generation[1:]), question_id, criterion_id, reader)


@dataclass(frozen=True)
class ClientStep:
    """What a call of an outside caller is for: the call itself, by the id it was given or its key (O10)."""

    call_id: str

    #: no file is worked on, and nobody asks for it anew
    file_id = ""
    generation = 1

    def call(self, number: int) -> str:
        """The idempotency key of the step's call of that number, counted from 1."""
        return f"{self}/{number}"

    def __str__(self) -> str:
        return f"client/{self.call_id}"


def is_uuid(text: str) -> bool:
    """Whether the text is one of the forms of a UUID, and so may be a batch's id."""
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def is_segment(text: str) -> bool:
    """Whether the text may stand between slashes in an id."""
    return _SEGMENT.fullmatch(text) is not None
