"""What many tests need to begin with: an exam, answers, a batch in progress."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import httpx

from domain.batch import Batch, BatchKind, BatchOpening
from domain.exam import Exam, read_exam
from domain.ports import Upload
from domain.states import BATCH_MACHINE
from runtime.resources import Resources
from runtime.server import services

EXAM: dict[str, Any] = {
    "title": "Photosynthesis",
    "questions": [
        {
            "id": "q1",
            "type": "multiple_choice",
            "prompt": "Which gas? A) O2 B) CO2",
            "points": 1,
            "answer": "B",
        },
        {
            "id": "q2",
            "type": "short_answer",
            "prompt": "What do plants need light for?",
            "points": 3,
            "reference": "Light gives the energy that turns carbon dioxide and water into sugar.",
            "criteria": [
                {"id": "c1", "points": 2, "description": "Light is the source of energy."},
                {"id": "c2", "points": 1, "description": "Sugar is made."},
            ],
        },
    ],
}
ONE_QUESTION: dict[str, Any] = {"title": "One question", "questions": [EXAM["questions"][1]]}
ANSWERS = {"q1": "B", "q2": "Light gives the energy to make sugar. It comes from the sun."}


def an_exam(document: Mapping[str, Any] = EXAM) -> Exam:
    """The exam as the domain knows it."""
    return read_exam(document)


def a_submission(answers: Mapping[str, str] = ANSWERS) -> bytes:
    """A readable file with these answers."""
    return json.dumps({"answers": dict(answers)}).encode()


async def open_batch(
    resources: Resources,
    files: Mapping[str, bytes],
    *,
    exam: Mapping[str, Any] = EXAM,
    complete: bool = True,
    **opening: Any,
) -> Batch:
    """A batch with these files, through the real stores; completed but not started."""
    made = services(resources)
    await made.keys.ensure("local", "Local", "test", "assay_builders_key")  # type: ignore[attr-defined]
    stored = await made.exams.create("local", read_exam(exam), made.new_id())
    batch = await made.batches.open(
        "local",
        BatchOpening(BatchKind.GRADING, exam_id=stored.id, **{"model": "scripted", **opening}),
        "0" * 32,
        made.new_id(),
    )
    for name, content in files.items():
        await add_file(resources, batch.id, name, content)
    return await made.batches.complete("local", batch.id) if complete else batch


async def add_file(resources: Resources, batch_id: str, name: str, content: bytes) -> str:
    """One file in the object store and its row; answers its id."""
    import hashlib

    from domain.identity import object_key

    made = services(resources)
    file_id, digest = made.new_id(), hashlib.sha256(content).hexdigest()
    key = object_key("local", batch_id, file_id, digest)

    async def chunks() -> Any:
        yield content

    await made.objects.write(key, chunks())
    upload = Upload(file_id, name, key, len(content), digest)
    return (await made.batches.add_file("local", batch_id, upload, overwrite=False)).file.id


async def ended(resources: Resources, batch_id: str, *, within_seconds: float = 120) -> Batch:
    """The batch once it is in a final state."""
    made = services(resources)
    async with asyncio.timeout(within_seconds):
        while (batch := await made.batches.read("local", batch_id)).state not in BATCH_MACHINE.final:
            await asyncio.sleep(0.05)
    return batch


async def graded(api: httpx.AsyncClient, files: Mapping[str, bytes], **opening: Any) -> str:
    """A batch handed in over HTTP and started; answers its id."""
    exam = (await api.post("/v1/exams", json=EXAM)).raise_for_status().json()
    request = {"kind": "grading", "exam_id": exam["id"], "model": "scripted", **opening}
    batch_id: str = (await api.post("/v1/batches", json=request)).raise_for_status().json()["batch_id"]
    for name, content in files.items():
        (await api.put(f"/v1/batches/{batch_id}/files/{name}", content=content)).raise_for_status()
    (await api.post(f"/v1/batches/{batch_id}/complete")).raise_for_status()
    return batch_id
