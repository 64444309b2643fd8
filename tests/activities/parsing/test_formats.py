"""What each format's reader makes of its own details."""

import codecs
from datetime import UTC, datetime

import pytest
from pydlt import ArgumentString, ArgumentUInt32, DltMessage, MessageLogInfo, MessageType, StorageHeader

from activities.parsing.reader import open_log
from activities.parsing.source import Account
from domain.errors import UnreadableLog
from domain.logs import Level, LogFormat, LogLine

AT = datetime(2026, 3, 17, 16, 13, 38, tzinfo=UTC)


def read(content: bytes, account: Account | None = None, name: str = "a.log") -> list[LogLine]:
    return list(open_log(name, [content], account=account))


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030"]
)  # fmt: skip
def test_chinese_is_read_in_the_encodings_it_is_written_in(encoding: str) -> None:
    line = "2026-03-17 16:13:38 ERROR slot B: 电池电压过低，升级失败，回滚到旧系统\r\n"
    text = line * 2
    account = Account()
    lines = read(text.encode(encoding), account)
    assert [line.text for line in lines] == text.split("\r\n")[:2]
    assert [line.at for line in lines] == [AT, AT]
    assert account.replaced_characters == 0


def test_utf_16_with_the_other_mark_is_read_too() -> None:
    assert read(codecs.BOM_UTF16_BE + "slot B\n电池".encode("utf-16-be"))[1].text == "电池"


def test_bytes_that_are_no_text_are_marked_counted_and_lose_no_line() -> None:
    account = Account()
    lines = read(b"first \xff\xfe slot\nse\0\0cond\n\0\0\0\nlast", account)
    assert [(line.number, line.text) for line in lines] == [
        (1, "first \ufffd\ufffd slot"),
        (2, "second"),
        (4, "last"),
    ]
    assert (account.replaced_characters, account.nul_characters) == (2, 5)


def test_lines_of_old_machines_end_with_a_carriage_return() -> None:
    assert [line.text for line in read(b"one\rtwo\r")] == ["one", "two"]
    assert [line.text for line in read(b"10 %\r20 %\r\ndone\n")] == ["10 %\r20 %", "done"]


@pytest.mark.parametrize(
    ("line", "content", "level", "at"),
    [
        ('{"ts":"2026-03-17T16:13:38Z","severity":"ERROR","message":"no","n":2}', "no n=2", Level.ERROR, AT),
        ('{"time":1773764018,"level":30,"msg":"no slot"}', "no slot", Level.INFO, AT),
        ('{"MSG":"升级","nested":{"a":[1]}}', '升级 nested={"a":[1]}', None, None),
        ('{"code":7}', "code=7", None, None),
        ('{"broken": ', '{"broken":', None, None),
        ("error: no object", "error: no object", Level.ERROR, None),
    ],
)  # fmt: skip
def test_a_json_object_is_told_apart(
    line: str, content: str, level: Level | None, at: datetime | None
) -> None:
    account = Account()
    found = read(b'{"msg":"a"}\n{"msg":"b"}\n' + line.encode(), account)[2]
    assert (found.text, found.content, found.level, found.at) == (line, content, level, at)
    assert account.format is LogFormat.JSON_LINES


def test_a_table_is_read_by_its_column_names() -> None:
    first, second = b'2026-03-17;16:13:38;warn;"first\nsecond; third"\n', b'2026-03-17;16:13:38;;"open\nlast'
    table = b"Date;Time;Level;Message\n" + first + second
    account = Account()
    lines = read(table, account)
    assert [(line.number, line.content) for line in lines] == [
        (1, "Date;Time;Level;Message"),
        (2, "first\nsecond; third"),
        (4, '2026-03-17;16:13:38;;"open'),
        (5, "last"),
    ]
    assert (lines[1].at, lines[1].level) == (AT, Level.WARNING)
    assert account.format is LogFormat.CSV


def test_a_table_without_messages_is_one_by_its_name_and_shows_its_columns() -> None:
    lines = read(b"time,voltage,slot\n2026-03-17 16:13:38,11.9,B\n", name="values.csv")
    assert (lines[1].content, lines[1].at) == ("voltage=11.9 slot=B", AT)


def test_prose_with_commas_is_no_table() -> None:
    account = Account()
    read(b"Well, time to go\nNo, message received\n", account)
    assert account.format is LogFormat.TEXT


FLIGHT = b"""FMT, 128, 89, FMT, BBnNZ, Type,Length,Name,Format
FMT, 130, 45, GPS, BIHB, Status,TimeMS,Week,NSats
FMT, 19, 5, ERR, BB, Subsys,ECode
FMT, 13, 4, EV, B, Id
FMT, 3, 6, MODE, Mh, Mode,ThrCrs
ERR, 6, 1
GPS, 3, 231236000, 2410, 9
ERR, 6, 0
EV, 10
MODE, RTL, 271
ERR, 99, 4
"""


def test_events_of_a_flight_say_what_their_numbers_mean() -> None:
    lines = read(FLIGHT)[5:]
    assert [(line.content, line.level) for line in lines] == [
        ("ERR FS_BATT: battery failsafe, code 1", Level.ERROR),
        ("GPS", None),
        ("ERR FS_BATT: battery failsafe, over", Level.INFO),
        ("EV ARMED", Level.INFO),
        ("MODE RTL", Level.INFO),
        ("ERR SUBSYSTEM_99: unknown subsystem, code 4", Level.ERROR),
    ]


def test_a_flight_has_time_from_its_first_fix_on() -> None:
    lines = read(FLIGHT)
    assert lines[5].at is None
    assert [line.at for line in lines[6:]] == [datetime(2026, 3, 17, 16, 13, 38, tzinfo=UTC)] * 5


def stored(seconds: int = 1_773_764_018) -> StorageHeader:
    return StorageHeader(seconds, 0, "ECU1")


def verbose(text: str, level: MessageLogInfo = MessageLogInfo.DLT_LOG_ERROR) -> bytes:
    arguments = [ArgumentString(text), ArgumentUInt32(7)]
    message = DltMessage.create_verbose_message(
        arguments, MessageType.DLT_TYPE_LOG, level, "SWUP", "INST", timestamp=12_345, str_header=stored()
    )
    return bytes(message.to_bytes())


NON_VERBOSE = bytes(DltMessage.create_non_verbose_message(5, b"\xab", str_header=stored()).to_bytes())


def test_messages_of_dlt_are_written_out_as_its_own_library_does() -> None:
    content = verbose("slot B failed") + NON_VERBOSE
    lines = read(content)
    peer = [str(DltMessage.create_from_bytes(each, True)) for each in (verbose("slot B failed"), NON_VERBOSE)]
    assert [line.text for line in lines] == peer
    assert [(line.content, line.level, line.at) for line in lines] == [
        ("SWUP INST slot B failed 7", Level.ERROR, AT),
        ("[5] ab", None, AT),
    ]


#: of a struct, which pydlt does not read
UNKNOWN_ARGUMENT = verbose("a").replace(b"\x00\x02\x00\x00", b"\x00\x40\x00\x00")


@pytest.mark.parametrize(
    ("content", "texts", "incomplete"),
    [
        (verbose("a") + b"garbage" + verbose("b"), ["a", "b"], "damaged"),
        (verbose("a")[:-6] + verbose("b"), ["damaged", "b"], "damaged"),
        (verbose("a") + verbose("b")[:-1], ["a"], "breaks off"),
        (verbose("a") + verbose("b")[:20], ["a"], "breaks off"),
        (verbose("x")[3:] + verbose("a") + verbose("b"), ["a", "b"], "damaged"),
        (verbose("a") + b"DLT\x01" + verbose("b"), ["a", "b"], "damaged"),
        (UNKNOWN_ARGUMENT + verbose("b"), ["damaged", "b"], "damaged"),
    ],
)  # fmt: skip
def test_dlt_goes_on_after_damage_and_says_so(content: bytes, texts: list[str], incomplete: str) -> None:
    account = Account()
    lines = read(content, account)
    assert [next(text for text in texts if text in line.content) for line in lines] == texts
    assert incomplete in account.incomplete


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xa3\x95\x80" + b"\0\1" * 50, "mavlogdump"),
        (b"ULog\x01\x12\x35" + b"\0" * 50, "ULog"),
        (b"\x89MCAP0\r\n", "MCAP"),
        (bytes(range(1, 32)) * 10, "not known here"),
    ],
)
def test_other_formats_are_refused_by_name_and_with_what_is_read(content: bytes, says: str) -> None:
    with pytest.raises(UnreadableLog, match=f"{says}.*DLT"):
        read(content)
