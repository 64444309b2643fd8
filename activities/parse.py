"""Parse one log: the contract of the queue `parsing`, which a worker in any language can serve (B3.3)."""

from dataclasses import dataclass


@dataclass
class ParseInput:
    """Which log, where its bytes are, and where the document of its `ParsedLog` is to be written."""

    tenant_id: str
    batch_id: str
    file_id: str
    generation: int
    name: str
    object_key: str
    size_bytes: int
    parsed_key: str
    trace_id: str = ""


@dataclass
class ParseResult:
    """What was written, in figures; the SHA-256, in hex, is the document's."""

    parsed_key: str
    parsed_sha256: str
    lines: int
    parsed_lines: int
    format: str
