"""One template where several logs have made nearly the same, whatever order they come in."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from domain.logs import WILDCARD

_MARKS = "=:,;()[]{}|\"'"
#: `user=<*>` says the same as `user=root`: a word ends at a mark, as it does for the mining of one log
_TOKEN = re.compile(rf"<\*>(?=[\s{re.escape(_MARKS)}]|$)|[{re.escape(_MARKS)}]|[^\s{re.escape(_MARKS)}]+")
#: of the words that are the same in both: a template of wildcards alone would swallow all of its length
_LEAST_SHARED = 0.5
#: ways through the templates that are followed for one; logs made to have more only merge less
_MOST_WAYS = 64


def canonical_texts(texts: Iterable[str]) -> dict[str, str]:
    """For each template the most general one of them that says the same, often itself.

    One subsumes another if both have as many tokens, and each token is the same or a wildcard in the former;
    at least half of the latter's own words must remain. Where several do, the closest is taken, and on from
    there. The answer depends on the set of templates alone.
    """
    tokens = {text: tuple(_TOKEN.findall(text)) for text in texts}
    general = _Trie()
    for text, parts in tokens.items():
        general.put(text, parts)
    closest = {text: _closest(text, parts, general, tokens) for text, parts in tokens.items()}
    return {text: _root(text, closest) for text in tokens}


def _closest(text: str, parts: tuple[str, ...], general: "_Trie", tokens: dict[str, tuple[str, ...]]) -> str:
    words = _words(parts)
    subsuming = [
        (_wildcards(tokens[each]), each)
        for each in general.subsuming(parts)
        if each != text and _words(tokens[each]) >= max(1, _LEAST_SHARED * words)
    ]
    return min(subsuming, default=(0, text))[1]


def _root(text: str, closest: dict[str, str]) -> str:
    # each step has more wildcards than the one before, or a lesser text of the same tokens: the way ends
    while closest[text] != text:
        text = closest[text]
    return text


def _wildcards(parts: tuple[str, ...]) -> int:
    return parts.count(WILDCARD)


def _words(parts: tuple[str, ...]) -> int:
    return sum(part != WILDCARD and part[0] not in _MARKS for part in parts)


@dataclass
class _Node:
    text: str | None = None
    following: "dict[str, _Node]" = field(default_factory=dict)


class _Trie:
    """Templates by their tokens; finds all that subsume another without looking at the rest."""

    def __init__(self) -> None:
        self._roots: dict[int, _Node] = {}

    def put(self, text: str, parts: tuple[str, ...]) -> None:
        node = self._roots.setdefault(len(parts), _Node())
        for part in parts:
            node = node.following.setdefault(part, _Node())
        # of templates that differ in their spaces alone the least stands for all
        node.text = text if node.text is None else min(node.text, text)

    def subsuming(self, parts: tuple[str, ...]) -> Iterator[str]:
        # by hand, as a template may have more tokens than Python has frames
        nodes = [self._roots[len(parts)]] if len(parts) in self._roots else []
        for part in parts:
            keys = (WILDCARD,) if part == WILDCARD else (part, WILDCARD)
            nodes = [node.following[key] for node in nodes for key in keys if key in node.following]
            del nodes[_MOST_WAYS:]
        yield from (node.text for node in nodes if node.text is not None)
