"""Labels: what a student may call a question, in headings, keys and column titles."""

import re
import unicodedata
from collections.abc import Sequence

_ANSWER_WORDS = (
    "answers", "answer", "ans", "response", "resp", "antwort", "lösung", "réponse", "reponse",
    "respuesta", "risposta", "resposta", "antwoord", "答案", "回答", "解答", "答",
)  # fmt: skip
_QUESTION_WORDS = (
    "questions", "question", "problem", "exercise", "task", "item", "frage", "aufgabe", "exercice",
    "pregunta", "ejercicio", "domanda", "esercizio", "pergunta", "questão", "vraag", "opgave",
    "题目", "題目", "题号", "題號", "问题", "問題", "习题", "習題", "题", "題", "问", "問",
)  # fmt: skip
_LINKS = ("number", "to", "for", "zur", "zu", "à la", "a la", "no", "nr", "nº")
_CHINESE = "〇零一二三四五六七八九十"


def _any(words: Sequence[str]) -> str:
    return "|".join(words)


#: a number with a part: 1, 12, 2.1, 3b, 3(b), 三, 十二
NUMBER = rf"(?:\d{{1,3}}(?:\.\d{{1,2}}(?!\d))?(?:[(（][a-z][)）]|\.?[a-z](?![^\W_]))?|[{_CHINESE}]{{1,3}})"
_JOINT = r"[\s.#№°_-]{0,3}"
_WORDS = rf"(?:{_any((*_ANSWER_WORDS, *_QUESTION_WORDS))})"
#: Question 1, Answer to question 1, Q.1, Ex 1, A1, 题目1, 第一题
NAMED = (
    rf"(?:(?:{_WORDS}(?:{_JOINT}(?:{_any(_LINKS)}|{_WORDS}|q)(?![^\W\d_])){{0,3}}{_JOINT}"
    rf"|(?:q|a|ex){_JOINT})[(（]?(?P<named>{NUMBER})"
    rf"|第\s?(?P<counted>{NUMBER})\s?(?:小|大|道)?(?:题|題|问|問))"
)
#: an answer's own label before it: "Answer:", "A1.", "答："
ANSWER_LABEL = re.compile(
    rf"(?:(?:{_any(_ANSWER_WORDS)})(?:{_JOINT}{NUMBER})?|a{_JOINT}{NUMBER})\s?[:：.)）、]\s*", re.IGNORECASE
)

_NAMED = re.compile(rf"\s*{NAMED}[)）]?\s*[:：.]?\s*", re.IGNORECASE)
_BARE = re.compile(rf"\s*[(（]?(?P<bare>{NUMBER})[)）.]?\s*", re.IGNORECASE)
_IS_ANSWER = re.compile(rf"\s*(?:{_any(_ANSWER_WORDS)}|a{_JOINT}\d)", re.IGNORECASE)
_ID = re.compile(r"(?P<word>\D*)(?P<number>\d.*)")


class Labels:
    """Questions by their ids, by the numbers in their ids or, where those carry none, by their places."""

    def __init__(self, question_ids: Sequence[str]) -> None:
        self.ids = tuple(question_ids)
        self._by_id = {each.casefold(): index for index, each in enumerate(self.ids)}
        self._by_number = _numbers(self.ids)

    def by_id(self, text: str) -> int | None:
        """The index of the question of that id, in whatever case."""
        return self._by_id.get(text.casefold())

    def by_number(self, text: str) -> int | None:
        """The index of the question of that number, such as `1`, `3b`, `三`."""
        return self._by_number.get(_canonical(text))

    def find(self, text: str) -> int | None:
        """The index of the question that a key or a column's title names as a whole."""
        found = self.by_id(text.strip())
        if found is None and (match := _NAMED.fullmatch(text)):
            found = self.by_number(match["named"] or match["counted"])
        if found is None and (match := _BARE.fullmatch(text)):
            found = self.by_number(match["bare"])
        return found

    def rank(self, text: str) -> int:
        """How directly a title names a question: its id, an answer to it, the question, a bare number."""
        if self.by_id(text.strip()) is not None:
            return 0
        if _BARE.fullmatch(text):
            return 3
        return 1 if _IS_ANSWER.match(text) else 2


def _numbers(ids: Sequence[str]) -> dict[str, int]:
    """The numbers in ids of one pattern (q1, q2, q3b); else, as ipv4 is no fourth question, the places."""
    split = [_ID.fullmatch(each.casefold()) for each in ids]
    words = {match["word"] for match in split if match}
    numbers = {_canonical(match["number"]): index for index, match in enumerate(split) if match}
    if len(words) == 1 and len(numbers) == len(ids):
        return numbers
    return {str(index + 1): index for index in range(len(ids))}


def _canonical(number: str) -> str:
    if all(each in _CHINESE for each in number):
        return str(_chinese_number(number))
    plain = re.sub(r"[\s()_-]", "", unicodedata.normalize("NFKC", number).casefold())
    plain = re.sub(r"\.(?=\D|$)|(?<=\D)\.", "", plain)
    return re.sub(r"(?<!\d)0+(?=\d)", "", plain)


def _chinese_number(number: str) -> int:
    digits = [(_CHINESE.index(each) - 1 if each != "〇" else 0) for each in number if each != "十"]
    if "十" not in number:
        return int("".join(map(str, digits)))
    tens, _, ones = number.partition("十")
    return 10 * (digits[0] if tens else 1) + (digits[-1] if ones else 0)
