"""A class of made-up students whose marks are known beforehand, and the script that gives them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from runtime.client import ApiClient
from runtime.grading import grade

#: what the script gives for each open question: the share of the points, and the seconds it takes more
OPEN = {"q2": ("full", 0.0), "q3": ("half", 0.25), "q4": ("zero", 0.5), "q5": ("half", 1.0)}
POINTS = {"full": 4.0, "half": 2.0, "zero": 0.0}


def exam_document() -> dict[str, Any]:
    """One closed question of 1 point and four open ones of 4 points each."""
    closed = {"id": "q1", "type": "multiple_choice", "prompt": "A or B?", "points": 1, "answer": "B"}
    types = ("short_answer", "essay", "code", "short_answer")
    opened = [
        {
            "id": question,
            "type": type_,
            "prompt": f"What is {question} about?",
            "points": 4,
            "reference": "It is about light and sugar.",
            "criteria": [
                {"id": "c1", "points": 3, "description": "Light."},
                {"id": "c2", "points": 1, "description": "Sugar."},
            ],
        }
        for question, type_ in zip(OPEN, types, strict=True)
    ]
    return {"title": "Known marks", "questions": [closed, *opened]}


def write_script(path: Path, calls_log: Path, *, latency_seconds: float) -> Path:
    """The scripted model: each question has its policy and its latency, so they end one by one."""
    rules = [
        {"match": question, "reply": policy, "hang_seconds": seconds}
        for question, (policy, seconds) in OPEN.items()
    ]
    script = {"latency_seconds": latency_seconds, "rules": rules, "calls_log": str(calls_log)}
    path.write_text(yaml.safe_dump(script))
    return path


@dataclass(frozen=True)
class Classroom:
    """An exam and submissions on disk; every second student has the closed question right."""

    exam: Path
    files: list[Path]

    @classmethod
    def of(cls, folder: Path, students: int) -> "Classroom":
        """So many students in this folder."""
        folder.mkdir(parents=True)
        exam = folder / "exam.yaml"
        exam.write_text(yaml.safe_dump(exam_document()))
        files = []
        for number in range(students):
            answers = {q: f"Answer {number} to {q}: light makes sugar. It is warm." for q in OPEN}
            path = folder / f"student-{number:03}.json"
            path.write_text(json.dumps({"answers": {"q1": "AB"[number % 2], **answers}}))
            files.append(path)
        return cls(exam, files)

    def hand_in(self, client: ApiClient, *, max_concurrent: int = 20) -> str:
        """A started batch; answers its id."""
        return grade(
            client,
            self.exam,
            self.files,
            console=Console(quiet=True),
            model="scripted",
            max_concurrent=max_concurrent,
            name="",
        )

    def expected(self) -> dict[str, dict[str, float]]:
        """Every student's points by question."""
        opened = {question: POINTS[policy] for question, (policy, _) in OPEN.items()}
        return {path.name: {"q1": float(number % 2), **opened} for number, path in enumerate(self.files)}

    def assert_exact(self, client: ApiClient, batch_id: str) -> None:
        """Every file has ended once, as completed, with exactly its marks; the report's counts add up."""
        report = client.report(batch_id)
        assert report["batch"]["status"] == "completed"
        assert {name: count for name, count in report["counts"].items() if count} == {
            "completed": len(self.files)
        }
        assert len(report["submissions"]) == report["total_files"] == len(self.files)
        expected = self.expected()
        assert {each["name"]: each["questions"] for each in report["submissions"]} == expected
        for each in report["submissions"]:
            assert (each["state"], each["score"]) == ("completed", sum(expected[each["name"]].values()))

    def assert_events_exact(self, client: ApiClient, batch_id: str) -> None:
        """The event stream tells every file's final state once, and its numbers have no gaps."""
        numbers, finals = [], []
        for kind, event in client.events(batch_id, after=0):
            if kind == "snapshot" or kind == "end":
                continue
            numbers.append(event["number"])
            if kind == "StatusChanged" and event["machine"] == "file" and event["to"] == "completed":
                finals.append(event["file_id"])
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(finals) == len(set(finals)) == len(self.files)
