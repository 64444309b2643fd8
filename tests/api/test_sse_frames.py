"""Server-Sent Events carry each event's number as their id."""

import json

from api.progress import socket_document, sse_frame
from api.watching import End, KeepAlive, Snapshot
from domain.batch import ProgressEvent
from domain.diagnosis import DiagnosisDelta

EVENT = ProgressEvent("e1", "FileAssessed", "b1", 8, "2026-01-02T03:04:05+00:00", "f1", {"name": "李\n雷"})


def test_an_event_has_its_number_as_id_and_its_type_as_name() -> None:
    number, name, data, *rest = sse_frame(EVENT).split("\n")

    assert (number, name, rest) == ("id: 8", "event: FileAssessed", ["", ""])
    assert json.loads(data.removeprefix("data: ")) == EVENT.document()


def test_a_snapshot_has_the_number_after_which_its_events_follow() -> None:
    frame = sse_frame(Snapshot(7, {"state": "scattering"}))

    assert frame == 'id: 7\nevent: snapshot\ndata: {"state": "scattering", "last_number": 7}\n\n'


def test_the_end_and_the_keep_alive_have_no_number() -> None:
    assert sse_frame(End({"state": "completed"})) == 'event: end\ndata: {"state": "completed"}\n\n'
    assert sse_frame(KeepAlive()) == ": keep-alive\n\n"


def test_a_socket_gets_the_same_as_json_with_its_type() -> None:
    assert socket_document(EVENT) == {"type": "event", **EVENT.document()}
    assert socket_document(Snapshot(7, {"a": 1})) == {"type": "snapshot", "a": 1, "last_number": 7}
    assert socket_document(End({"a": 1})) == {"type": "end", "a": 1}
    assert socket_document(KeepAlive()) is None


def test_a_piece_of_a_diagnosis_has_no_number_to_come_back_with() -> None:
    delta = DiagnosisDelta("b1", "The\nslot", 4)

    frame = sse_frame(delta)

    assert frame == (
        'event: diagnosis.delta\ndata: {"batch_id": "b1", "text": "The\\nslot", "offset": 4}\n\n'
    )
    document = {"type": "diagnosis.delta", "batch_id": "b1", "text": "The\nslot", "offset": 4}
    assert socket_document(delta) == document
