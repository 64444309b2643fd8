"""Text, ids and times as they go over the wire."""

import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Path
from pydantic import AfterValidator, PlainSerializer

MAX_NAME_LENGTH = 255
MAX_VIN_LENGTH = 17

_VIN = re.compile(r"[A-Za-z0-9]*")


def iso(moment: datetime) -> str:
    """RFC 3339 in UTC, with offset."""
    return moment.astimezone(UTC).isoformat()


def plain_text(text: str) -> str:
    """The text, if it holds no control characters; `ValueError` names the first one."""
    for position, character in enumerate(text):
        # Cs: half a surrogate pair is no character, and no store keeps it
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise ValueError(f"character {position + 1} is the control character U+{ord(character):04X}")
    return text


def vin_text(text: str) -> str:
    """The vehicle identification number, whole or in part; `ValueError` for anything else."""
    if len(text) > MAX_VIN_LENGTH or not _VIN.fullmatch(text):
        raise ValueError(f"expected at most {MAX_VIN_LENGTH} letters and digits")
    return text


PlainText = Annotated[str, AfterValidator(plain_text)]
Vin = Annotated[str, AfterValidator(vin_text)]
Time = Annotated[datetime, PlainSerializer(iso, return_type=str)]

_ID = "0197c1de-1111-7000-8000-000000000000"
BatchId = Annotated[str, Path(description="The batch's id.", examples=[_ID])]
ExamId = Annotated[str, Path(description="The exam's id.", examples=[_ID])]
FileId = Annotated[str, Path(description="The file's id.", examples=[_ID])]
SubmissionId = Annotated[str, Path(description="The submission's id: its file's.", examples=[_ID])]
