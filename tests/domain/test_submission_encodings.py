"""Bytes as text: every common encoding is told, and what is doubtful is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.decoding import decode
from domain.errors import UnreadableSubmission

CHINESE = "第一题：TCP 通过三次握手建立连接，客户端发送 SYN。\n二、光合作用需要光，产生氧气。"
TRADITIONAL = "第一題：光合作用需要光，產生氧氣。\n植物利用葉綠素吸收光能。"
GERMAN = "Frage 1: Die Universität – «Größe» übt für 5 €.\nDas hängt vom Äther ab."
ENGLISH = "## q1\nDNS translates names.\n## q2\n443"


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"],
)
@pytest.mark.parametrize("text", [CHINESE, TRADITIONAL, GERMAN, ENGLISH], ids=["zh", "tw", "de", "en"])
def test_unicode_is_read_in_every_form(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (CHINESE, "gbk"),
        (CHINESE, "gb18030"),
        (TRADITIONAL, "big5"),
        (GERMAN, "cp1252"),
        ("q1: na\xefve", "latin-1"),
    ],
)
def test_older_encodings_are_told(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Вопрос 1: Ответ такой.", "cp1251"),
        ("Вопрос 1: Ответ такой.", "koi8-r"),
        ("第1問 これはテストです。", "shift_jis"),
        ("第1問 これはテストです。", "euc-jp"),
        ("문제 1: 광합성은 빛이 필요하다.", "euc-kr"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused_with_the_way_out(text: str, encoding: str) -> None:
    with pytest.raises(UnreadableSubmission, match="Save the file as UTF-8"):
        decode(text.encode(encoding))


@pytest.mark.parametrize(
    "content", [b"\x7fELF\x02\x01\x01" + bytes(9), b"q1: a\0b", b"\x89PNG\r\n\x1a\n\0\0", bytes(range(256))]
)
def test_binary_is_no_text(content: bytes) -> None:
    with pytest.raises(UnreadableSubmission):
        decode(content)


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"\xef\xbb\xbf", b"\xff\xfe", " \n".encode("utf-16"), "\u3000".encode()]
)
def test_nothing_is_said_to_be_nothing(content: bytes) -> None:
    with pytest.raises(UnreadableSubmission, match=r"empty|white space"):
        decode(content)


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_text_without_nul_or_refused(content: bytes) -> None:
    try:
        text = decode(content)
    except UnreadableSubmission:
        return
    assert text.strip()
    assert not set("\0\r") & set(text)


@settings(max_examples=200)
@given(st.text(st.characters(codec="utf-8", exclude_characters="\0\r\ufeff"), min_size=1).filter(str.strip))
def test_utf_8_is_never_taken_for_anything_else(text: str) -> None:
    assert decode(text.encode()) == text
