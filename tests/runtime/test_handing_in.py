"""Handing in files and tables from the command line, over the real API."""

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from domain.errors import InvalidInput
from runtime.client import ApiClient
from runtime.grading import estimate, grade, show_tables
from runtime.handing_in import TableColumns, hand_in, read_submissions
from tests.conftest import KEY
from tests.river.installation import run_assay

EXAM = """
title: Networks
questions:
  - {id: q1, type: exact, prompt: Port of HTTPS?, points: 1, answer: "443"}
"""
PROMPTS = {"q1": "Port of HTTPS?"}


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
    def send() -> list[str]:
        submissions = read_submissions(files, PROMPTS, TableColumns(**columns))
        return hand_in(client, batch_id, submissions, Console(quiet=True))

    return await asyncio.to_thread(send)


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


# --- what is checked here, before anything is sent ---------------------------------------------------

TWO_QUESTIONS = EXAM + '  - {id: q2, type: exact, prompt: Port of HTTP?, points: 1, answer: "80"}\n'
MOODLE = "Last name,ID number,Email address,Response 1\n"


@pytest.fixture
def exam(tmp_path: Path) -> Path:
    """An exam of two questions."""
    path = tmp_path / "exam.yaml"
    path.write_text(TWO_QUESTIONS)
    return path


def a_file(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path


def start(client: ApiClient, exam: Path, *files: Path, shown: Console | None = None, **options: Any) -> str:
    console = shown or Console(quiet=True)
    return grade(client, exam, files, console=console, model="local", max_concurrent=1, **options)


async def batches_of(client: ApiClient, name: str) -> list[str]:
    """The states of the batches of that name."""
    listed = await asyncio.to_thread(client.get, "/v1/batches", page_size=100)
    return [each["status"] for each in listed["items"] if each["name"] == name]


async def test_an_estimate_counts_a_tables_students_and_tells_what_it_does_not_count(
    client: ApiClient, exam: Path, tmp_path: Path
) -> None:
    table = a_file(tmp_path, "class.csv", "student,q1\nli,443\nwu,80\n,1\n")
    late = a_file(tmp_path, "late.txt", "q1: 443")
    broken = a_file(tmp_path, "broken.csv", 'student,q1\nli,"x')
    told: list[str] = []

    estimated = await asyncio.to_thread(
        estimate, client, exam, [table, late, broken], "local", on_refused=told.append
    )

    assert estimated["files"] == 3
    assert [line.removeprefix(f"{tmp_path}/").partition(":")[0] for line in told] == [
        "broken.csv",
        "class.csv row 4",
    ]
    with pytest.raises(InvalidInput, match="Row 2 is no CSV"):
        await asyncio.to_thread(estimate, client, exam, [broken], "local")


def test_the_size_of_a_row_is_that_of_its_answers(tmp_path: Path) -> None:
    table = a_file(tmp_path, "class.csv", "student,q1\nli,四四三\n")
    submissions = read_submissions([table], PROMPTS, TableColumns())
    assert submissions.sizes == [{"name": "li.json", "size_bytes": 9}]


async def test_the_students_column_is_chosen_once_for_all_parts_of_a_table(
    client: ApiClient, tmp_path: Path
) -> None:
    # the first requests' rows have no id number at all, the last one's have
    rows = [f"L{n},{n if n >= 500 else ''},{n}@example.org,443" for n in range(600)]
    table = a_file(tmp_path, "class.csv", MOODLE + "\n".join([*rows, "Overall average,,,1"]))
    batch_id = await opened(client, tmp_path)

    refused = await handed_in(client, batch_id, [table])

    assert await stored(client, batch_id) == {f"{n}.json" for n in range(500, 600)}
    assert len(refused) == 500


async def test_an_export_without_id_numbers_goes_by_the_next_column_and_its_footer_is_no_refusal(
    client: ApiClient, tmp_path: Path
) -> None:
    rows = "Li,,li@example.org,443\nWu,,wu@example.org,80\nOverall average,,,0.5\n"
    table = a_file(tmp_path, "class.csv", MOODLE + rows)
    batch_id = await opened(client, tmp_path)

    assert await handed_in(client, batch_id, [table]) == []
    assert await stored(client, batch_id) == {"li@example.org.json", "wu@example.org.json"}


@pytest.mark.parametrize(
    ("files", "columns", "said"),
    [
        (
            {"class.csv": MOODLE + "Li,,,443\n"},
            {},
            "every row was refused: column 'ID number' names no student; try --student COLUMN",
        ),
        ({"class.csv": "who,q1\nli,1"}, {}, "--student: .*state it as --student COLUMN"),
        ({"class.csv": "student,port\nli,1"}, {}, "--map: .*as in --map q1=COLUMN"),
        ({"class.csv": "student,q1\nli,1"}, {"pairs": ["q9=q1"]}, "--map: the exam has no question 'q9'"),
        ({"class.csv": "student,q1\nli,1"}, {"pairs": ["q1"]}, "--map: 'q1' is not of the form"),
        ({"class.csv": "student,q1\nli,1", "other.csv": "student,q1\nli,2"}, {}, "of the same student, 'li'"),
        ({"class.csv": "student,q1\nli,1", "li.json": "{}"}, {}, "row 2 and .*li.json are of the same"),
        ({"a.txt": "q1: 1", "b\tb.txt": "q1: 1"}, {}, r"'b\\tb.txt': name: character 2 .* Rename the file"),
        ({"a/x.txt": "q1: 1", "b/x.txt": "q1: 1"}, {}, "the same name"),
    ],
)
async def test_a_mistake_is_told_before_a_batch_is_opened(
    client: ApiClient, exam: Path, tmp_path: Path, files: dict[str, str], columns: dict[str, Any], said: str
) -> None:
    paths = [a_file(tmp_path, name, content) for name, content in files.items()]
    name = f"mistaken {tmp_path}"
    with pytest.raises(InvalidInput, match=said):
        await asyncio.to_thread(start, client, exam, *paths, name=name, columns=TableColumns(**columns))
    assert await batches_of(client, name) == []


async def test_a_hand_in_that_fails_leaves_no_open_batch(
    client: ApiClient, exam: Path, tmp_path: Path
) -> None:
    path = a_file(tmp_path, "late.txt", "q1: 443")
    name = f"failing {tmp_path}"
    with pytest.raises(FileNotFoundError):
        await asyncio.to_thread(start, client, exam, path, name=name, on_read=lambda _: path.unlink())
    assert await batches_of(client, name) == ["cancelled"]


def test_the_mapping_is_shown_with_a_warning_of_questions_without_a_column(tmp_path: Path) -> None:
    table = a_file(tmp_path, "class.csv", "Email,Response 1\nli,443\n")
    submissions = read_submissions([table], {**PROMPTS, "q2": "Port of HTTP?"}, TableColumns())
    shown = io.StringIO()
    show_tables(submissions, Console(file=shown, width=80))
    text = shown.getvalue()
    assert "class.csv: 1 student, named by column 'Email'; q1 from 'Response 1'." in text
    assert "no column for q2: every student gets 0 points there" in text
    assert "--map q2=COLUMN" in text


async def test_assay_grade_says_how_it_read_a_table_also_to_programs(
    api_url: str, exam: Path, tmp_path: Path
) -> None:
    table = a_file(tmp_path, "class.csv", "Email,Response 1\nli,443\n")
    access = {"ASSAY_API__URL": api_url, "ASSAY_API__KEY": KEY}

    done = await asyncio.to_thread(run_assay, tmp_path / "data", "grade", exam, table, "--json", **access)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tables"] == [
        {
            "file": str(table),
            "rows": 1,
            "student_column": "Email",
            "columns": {"q1": "Response 1"},
            "questions_without_column": ["q2"],
        }
    ]
    assert "no column for q2" in done.stderr

    wrong = await asyncio.to_thread(
        run_assay, tmp_path / "data", "grade", exam, table, "--limit", "much", **access
    )
    assert (wrong.returncode, "--limit: expected dollars" in wrong.stderr) == (2, True)
