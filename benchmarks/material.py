"""What the benchmarks grade: one short question, and a scripted model that knows how long to take."""

import json
from typing import Any

#: the question's id tells the scripted model how long to take
INSTANT, SLOW = "instant", "slow"
ANSWER = "Light gives the energy to make sugar. It comes from the sun."


def exam_document(question_id: str) -> dict[str, Any]:
    """An exam of one short question with two criteria."""
    return {
        "title": "One question",
        "questions": [
            {
                "id": question_id,
                "type": "short_answer",
                "prompt": "What do plants need light for?",
                "points": 3,
                "reference": "Light gives the energy that turns carbon dioxide and water into sugar.",
                "criteria": [
                    {"id": "c1", "points": 2, "description": "Light is the source of energy."},
                    {"id": "c2", "points": 1, "description": "Sugar is made."},
                ],
            }
        ],
    }


def submission(question_id: str) -> bytes:
    """A file that answers it."""
    return json.dumps({"answers": {question_id: ANSWER}}).encode()


def model_script(latency_seconds: float) -> str:
    """The scripted model: full points, at once for the instant question and late for the slow one."""
    return json.dumps({"reply": "full", "rules": [{"match": SLOW, "hang_seconds": latency_seconds}]})
