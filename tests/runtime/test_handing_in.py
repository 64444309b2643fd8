"""Handing in files and tables from the command line, over the real API."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from domain.errors import InvalidInput
from runtime.client import ApiClient
from runtime.handing_in import TableColumns, hand_in
from tests.conftest import KEY

EXAM = """
title: Networks
questions:
  - {id: q1, type: exact, prompt: Port of HTTPS?, points: 1, answer: "443"}
"""


@pytest.fixture
def client(api_url: str) -> Iterator[ApiClient]:
    """The command line's client with the local tenant's key."""
    with ApiClient(api_url, KEY) as made:
        yield made


async def opened(client: ApiClient, folder: Path) -> str:
    """The id of a pending batch."""
    path = folder / "exam.yaml"
    path.write_text(EXAM)

    def open_batch() -> str:
        exam_id = client.create_exam(path)["id"]
        return str(client.post("/v1/batches", {"kind": "grading", "exam_id": exam_id})["batch_id"])

    return await asyncio.to_thread(open_batch)


async def handed_in(client: ApiClient, batch_id: str, files: list[Path], **columns: Any) -> list[str]:
    console = Console(quiet=True)
    return await asyncio.to_thread(hand_in, client, batch_id, files, TableColumns(**columns), console)


async def stored(client: ApiClient, batch_id: str) -> set[str]:
    return {each["name"] for each in await asyncio.to_thread(lambda: list(client.files(batch_id)))}


async def test_a_table_works_beside_other_files_in_requests_of_some_rows(
    client: ApiClient, tmp_path: Path
) -> None:
    (tmp_path / "late.txt").write_text("q1: 443")
    rows = [f"s{number},{number}" for number in range(600)]
    (tmp_path / "class.csv").write_text("\n".join(["Nr,Port", "", *rows, ",1", "s1\ta,2"]))
    batch_id = await opened(client, tmp_path)

    files = [tmp_path / "late.txt", tmp_path / "class.csv"]
    refused = await handed_in(client, batch_id, files, student="Nr", pairs=["q1=Port"])

    assert await stored(client, batch_id) == {"late.txt", *(f"s{number}.json" for number in range(600))}
    # the rows are those of the file, whichever request they were in
    assert [line.removeprefix(str(tmp_path)).partition(":")[0] for line in refused] == [
        "/class.csv row 603",
        "/class.csv row 604",
    ]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("student,q1\n" + "".join(f"s{number},1\n" for number in range(600)) + "s0,2\n", "Rows 2 and 602"),
        ("who,q1\nli,1", "no column is known"),
        ("student,q1\n", "no row"),
        ("", "empty"),
    ],
)
async def test_a_wrong_table_is_refused_before_anything_is_sent(
    client: ApiClient, tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "class.csv").write_text(content)
    (tmp_path / "late.txt").write_text("q1: 443")
    batch_id = await opened(client, tmp_path)

    with pytest.raises(InvalidInput, match=said):
        await handed_in(client, batch_id, [tmp_path / "late.txt", tmp_path / "class.csv"])

    assert await stored(client, batch_id) == set()
