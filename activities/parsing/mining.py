"""Templates of a log's lines, mined with bounded memory (B6.2).

A message is masked first. Messages with the same signs between their words go to one tree of Drain, which
finds the family that a message is most like. Within a family a word is a parameter on evidence only: where at
least `Evidence.words` different words stood while all the rest was equal. So `started` and `stopped` stay two
templates, and the names of a hundred users become one.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from drain3.drain import Drain  # type: ignore[import-untyped]  # it has annotations, but no py.typed

from activities.parsing.masks import Places, Words, cut, masked, numbered_names, text_of, without_digits
from domain.logs import (
    LEVELS,
    MAX_EXAMPLES,
    MAX_TEMPLATES,
    MAX_TEXT_LENGTH,
    WILDCARD,
    Level,
    LogLine,
    Quote,
    TemplateCount,
)

#: which of these it is, is what the line says
_CLOSED = frozenset({"true", "false", "yes", "no", "on", "off"})

#: a tree's levels: its root, the number of words, the first word
_DEPTH = 4
_MAX_FIRST_WORDS = 100
#: in a fuller leaf a line joins the family that it is most like, however little
_MAX_FAMILIES_OF_LEAF = 100
#: a family with more makes parameters of the places with most words, whatever the evidence
_MAX_FORMS_OF_FAMILY = 64

#: of an example, in characters: its number leads to the whole line
_EXAMPLE_LENGTH = 500
#: of the messages whose form is remembered, in characters
_REMEMBERED_LENGTH = 8_000_000
#: in characters of its hash
_ID_LENGTH = 16


@dataclass(frozen=True)
class Evidence:
    """When words are taken for parameters, and lines for alike; for all logs the same."""

    #: so many different words at one place, all else equal, make it a parameter
    words: int = 5
    #: the same where little else is constant: `state: idle` tells more than `state: <*>`
    words_alone: int = 25
    #: fewer constant words are little
    constants: int = 3
    #: of its constant words, what a line shares at least with its family
    likeness: float = 0.5


def template_id(text: str) -> str:
    """The id of a template, made of its text alone: the same in any log."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_LENGTH]


class Miner:
    """Takes the lines of one log in their order, and counts them by template.

    The same lines give the same templates, in any process. Once there are `limit` templates, a line that
    follows none of them is left out and counted as `left_out`, the first of them quoted.
    """

    def __init__(self, limit: int = MAX_TEMPLATES, evidence: Evidence | None = None) -> None:
        self.limit = limit
        self._evidence = evidence or Evidence()
        self._trees: dict[Words, _Tree] = {}
        self._forms = 0
        self._full = False
        #: by messages without digits: their form, or where the names are whose digits count
        self._remembered: dict[str, _Form | Places] = {}
        #: by messages without digits but those of names
        self._named: dict[str, _Form] = {}
        self._remembered_length = 0
        self.lines = 0
        self.left_out = 0
        self.first_left_out: Quote | None = None

    def add(self, line: LogLine) -> None:
        """Count one more line."""
        self.lines += 1
        form = self._form(line.content)
        if form is not None:
            form.add(line, self.lines)
            return
        self.left_out += 1
        self.first_left_out = self.first_left_out or _quote(line)

    def templates(self) -> tuple[TemplateCount, ...]:
        """What the lines so far follow, most frequent first."""
        self._settle()
        counts = [form.template(text) for text, form in self._by_text().items()]
        return tuple(sorted(counts, key=lambda each: (-each.count, each.text)))

    def template_of(self, message: str) -> str | None:
        """The template, as far as is known, of a message that was taken; `None` if it was left out."""
        form = self._form(message)
        return None if form is None else text_of(masked(without_digits(cut(message))).signs, form.words)

    def _form(self, message: str) -> "_Form | None":
        """The form of a message, known or begun; `None` where there is no room for one more."""
        message = cut(message)
        zeroed = without_digits(message)
        known = self._remembered.get(zeroed)
        if known is None:
            # most messages have no names with numbers in them: their forms are found at the first look
            known = numbered_names(zeroed) or self._found(zeroed)
            self._remember(self._remembered, zeroed, known)
        if isinstance(known, tuple):
            exact = _with_names(zeroed, message, known)
            known = self._named.get(exact)
            if known is None:
                known = self._found(exact)
                self._remember(self._named, exact, known)
        while known is not None and known.became is not None:
            known = known.became
        return known

    def _remember(self, memory: dict[str, Any], message: str, known: "_Form | Places | None") -> None:
        if known is None:
            return
        self._remembered_length += len(message)
        if self._remembered_length > _REMEMBERED_LENGTH:
            self._remembered.clear()
            self._named.clear()
            self._remembered_length = len(message)
        memory[message] = known

    def _found(self, message: str) -> "_Form | None":
        """Masked, and looked for in its family."""
        line = masked(message)
        if self._forms >= self.limit:
            self._make_room()
        tree = self._trees.get(line.signs)
        if tree is None:
            if self._full:
                return None
            tree = self._trees[line.signs] = _Tree(line.signs, self._evidence)
        before = tree.forms
        form = tree.form(line.words, may_begin=not self._full)
        self._forms += tree.forms - before
        return form

    def _make_room(self) -> None:
        """Join what evidence joins; where that frees little, nothing is begun any more."""
        if not self._full:
            self._settle()
            self._full = self._forms > 0.9 * self.limit

    def _settle(self) -> None:
        for tree in self._trees.values():
            tree.settle()
        self._forms = sum(tree.forms for tree in self._trees.values())

    def _by_text(self) -> "dict[str, _Form]":
        """Families that came to the same text are one template."""
        forms: dict[str, _Form] = {}
        for tree in self._trees.values():
            for form in tree.all_forms():
                text = text_of(tree.signs, form.words)[:MAX_TEXT_LENGTH]
                if forms.setdefault(text, form) is not form:
                    forms[text].absorb(form)
        return forms


def _with_names(zeroed: str, message: str, names: Places) -> str:
    """The message without digits, but for those in its names."""
    parts: list[str] = []
    end = 0
    for start, stop in names:
        parts += zeroed[end:start], message[start:stop]
        end = stop
    return "".join([*parts, zeroed[end:]])


@dataclass(slots=True)
class _Form:
    """The lines that are of one template, as far as can be told yet."""

    words: Words
    count: int = 0
    levels: dict[Level | None, int] = field(default_factory=dict)
    first: datetime | None = None
    last: datetime | None = None
    #: with the ordinal of their lines
    examples: list[tuple[int, Quote]] = field(default_factory=list)
    #: the form that it turned out to be one with
    became: "_Form | None" = None

    def add(self, line: LogLine, ordinal: int) -> None:
        """Count one more line."""
        self.count += 1
        self.levels[line.level] = self.levels.get(line.level, 0) + 1
        at = line.at
        if at is not None:
            if self.first is None or at < self.first:
                self.first = at
            if self.last is None or at > self.last:
                self.last = at
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append((ordinal, _quote(line)))

    def absorb(self, other: "_Form") -> None:
        """Take over the lines of another one."""
        other.became = self
        self.count += other.count
        for level, count in other.levels.items():
            self.levels[level] = self.levels.get(level, 0) + count
        self.first = min(filter(None, (self.first, other.first)), default=None)
        self.last = max(filter(None, (self.last, other.last)), default=None)
        self.examples = sorted([*self.examples, *other.examples], key=lambda each: each[0])[:MAX_EXAMPLES]

    def covers(self, words: Words) -> bool:
        """Whether the words are these, but for its parameters."""
        return all(mine in (WILDCARD, other) for mine, other in zip(self.words, words, strict=True))

    def template(self, text: str) -> TemplateCount:
        """As it is told."""
        return TemplateCount(
            template_id=template_id(text),
            text=text,
            count=self.count,
            level=self._level(),
            first_at=self.first.isoformat() if self.first else "",
            last_at=self.last.isoformat() if self.last else "",
            examples=tuple(quote for _, quote in self.examples),
        )

    def _level(self) -> Level | None:
        """The most frequent, and of several the gravest."""
        named = [level for level in LEVELS if level in self.levels]
        return max(named, key=lambda level: self.levels[level], default=None)


def _quote(line: LogLine) -> Quote:
    at = line.at.isoformat() if line.at else ""
    return Quote(line.number, line.text[:_EXAMPLE_LENGTH], member=line.member, at=at)


class _Drain(Drain):  # type: ignore[misc]  # as above
    """Drain over words that are cut and masked already; parameters count neither for nor against likeness."""

    def __init__(self, likeness: float) -> None:
        super().__init__(
            depth=_DEPTH,
            sim_th=likeness,
            max_children=_MAX_FIRST_WORDS,
            param_str=WILDCARD,
            parametrize_numeric_tokens=False,
        )

    def get_content_as_tokens(self, content: Words) -> Words:
        return content

    def fast_match(
        self, cluster_ids: Sequence[int], tokens: Words, sim_th: float, include_params: bool
    ) -> object:
        full = len(cluster_ids) >= _MAX_FAMILIES_OF_LEAF
        return super().fast_match(cluster_ids, tokens, 0.0 if full else sim_th, include_params)

    def get_seq_distance(self, seq1: Words, seq2: Words, include_params: bool) -> tuple[float, int]:
        """The share of equal constants, and then how few parameters: more is more alike."""
        equal = constants = parameters = 0
        for mine, other in zip(seq1, seq2, strict=True):
            if mine == WILDCARD or other == WILDCARD:
                parameters += 1
            elif mine or other:
                constants += 1
                equal += mine == other
        return equal / constants if constants else 1.0, -parameters


class _Tree:
    """The families of messages with the same signs between their words."""

    def __init__(self, signs: Words, evidence: Evidence) -> None:
        self.signs = signs
        self.forms = 0
        self._evidence = evidence
        self._drain = _Drain(evidence.likeness)
        self._families: dict[int, _Family] = {}

    def form(self, words: Words, *, may_begin: bool) -> _Form | None:
        """The form of a message; one that is not known is begun, if it may be."""
        family = self._family(words, may_begin=may_begin)
        if family is None:
            return None
        before = len(family.forms)
        form = family.form(words, may_begin=may_begin)
        self.forms += len(family.forms) - before
        return form

    def _family(self, words: Words, *, may_begin: bool) -> "_Family | None":
        if may_begin:
            cluster, _ = self._drain.add_log_message(words)
            return self._families.setdefault(cluster.cluster_id, _Family(self._evidence))
        drain = self._drain
        cluster = drain.tree_search(drain.root_node, words, drain.sim_th, include_params=False)
        return None if cluster is None else self._families[cluster.cluster_id]

    def settle(self) -> None:
        """Join what evidence joins."""
        for family in self._families.values():
            family.settle()
        self.forms = sum(len(family.forms) for family in self._families.values())

    def all_forms(self) -> Iterable[_Form]:
        """Of all families, in the order of their beginning."""
        return (form for family in self._families.values() for form in family.forms.values())


class _Family:
    """Forms that are much alike, and may turn out to be one."""

    def __init__(self, evidence: Evidence) -> None:
        self.forms: dict[Words, _Form] = {}
        self._evidence = evidence
        self._joined: list[_Form] = []

    def form(self, words: Words, *, may_begin: bool) -> _Form | None:
        """The form with these words, or that covers them; else begun, if it may be."""
        found = self.forms.get(words) or next((form for form in self._joined if form.covers(words)), None)
        if found is None and may_begin:
            if len(self.forms) >= _MAX_FORMS_OF_FAMILY:
                self._shrink()
                return self.form(words, may_begin=True)
            found = self.forms[words] = _Form(words)
        return found

    def settle(self) -> None:
        """Join forms wherever there is evidence, until there is none."""
        joined = True
        while joined:
            # every place, whatever was joined at the one before
            joined = sum(self._settle_place(place) for place in self._places()) > 0

    def _shrink(self) -> None:
        """Halve the forms at least, by evidence or else by the places with most words."""
        self.settle()
        while len(self.forms) > _MAX_FORMS_OF_FAMILY // 2:
            place = next(iter(self._places()))
            for words, forms in self._groups(place).items():
                self._join(forms, (*words[:place], WILDCARD, *words[place:]))

    def _places(self) -> list[int]:
        """Where forms differ, the place with most words first."""
        variety = [len(set(words)) for words in zip(*self.forms, strict=True)]
        return sorted(
            (place for place, count in enumerate(variety) if count > 1), key=lambda at: -variety[at]
        )

    def _settle_place(self, place: int) -> bool:
        found = [
            (words, forms)
            for words, forms in self._groups(place).items()
            if len(forms) > 1 and self._is_parameter(place, words, forms)
        ]
        for words, forms in found:
            self._join(forms, (*words[:place], WILDCARD, *words[place:]))
        return bool(found)

    def _groups(self, place: int) -> dict[Words, list[_Form]]:
        """Forms by all their words but the one at that place."""
        groups: dict[Words, list[_Form]] = {}
        for words, form in self.forms.items():
            groups.setdefault(words[:place] + words[place + 1 :], []).append(form)
        return groups

    def _join(self, forms: list[_Form], words: Words) -> None:
        """Make the first of them the form of all."""
        for form in forms:
            del self.forms[form.words]
        kept, *others = forms
        for form in others:
            kept.absorb(form)
        kept.words = words
        self.forms[words] = kept
        gone = {id(form) for form in others}
        self._joined = [form for form in self._joined if id(form) not in gone and form is not kept]
        self._joined.append(kept)

    def _is_parameter(self, place: int, rest: Words, forms: Sequence[_Form]) -> bool:
        """Whether what stands at that place, where all the rest is equal, differs by chance."""
        found = {form.words[place] for form in forms}
        constants = sum(1 for word in rest if word and word != WILDCARD)
        if not constants or {word.lower() for word in found} <= _CLOSED:
            return False
        # the first word names what happens
        if place == 0 or constants < self._evidence.constants:
            return len(found) >= self._evidence.words_alone
        return WILDCARD in found or len(found) >= self._evidence.words
