"""The questions that a labelled set is about, and which of its answers are measured."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from domain.errors import InvalidInput
from domain.exam import MAX_POINTS, Criterion, Exam, GradedExample, Question, QuestionType
from domain.identity import is_segment
from runtime.evaluation.labelled import LabelledAnswer, LabelledSet

#: the only criterion of a question that is made from a set
CRITERION_ID = "answer"

_LISTED = 20


@dataclass(frozen=True)
class MarkedQuestion:
    """A question and its marked answers, the marks in the question's points; `label` is for people."""

    label: str
    question: Question
    answers: tuple[LabelledAnswer, ...]


@dataclass(frozen=True)
class Choice:
    """Which answers are measured: a pattern of labels, examples a question, a limit, and the draws' seed."""

    pattern: str = "*"
    examples: int = 0
    limit: int | None = None
    seed: int = 0
    include_fitted: bool = False


@dataclass(frozen=True)
class Task:
    """One answer to grade: against its question, which brings its graded examples."""

    label: str
    question: Question
    answer: LabelledAnswer


@dataclass(frozen=True)
class Plan:
    """What is graded, and what was left out and why."""

    tasks: tuple[Task, ...]
    notes: tuple[str, ...]


# --- questions out of a set ----------------------------------------------------------------------


def questions_of_set(labelled: LabelledSet, maximum: float | None) -> tuple[list[MarkedQuestion], list[str]]:
    """An exam made from the set, one criterion a question; with what was assumed on the way."""
    notes: list[str] = []
    if maximum is None and any(each.max_points is None for each in labelled.answers):
        maximum = max(each.mark for each in labelled.answers)
        if not maximum:
            raise InvalidInput(f"{labelled.name}: every mark is 0; say what full marks are: --maximum 1.")
        notes.append(f"Full marks are {maximum:g}, the highest mark in the set; --maximum sets others.")
    groups = _by_question(labelled)
    questions = []
    for index, (label, key) in enumerate(_labels(groups), start=1):
        _, prompt, reference = key
        points = _full_marks(labelled, groups[key], maximum)
        question = _made_question(label if is_segment(label) else f"q{index}", prompt, reference, points)
        questions.append(MarkedQuestion(label, question, tuple(groups[key])))
    return questions, notes + _assumptions(labelled, groups)


_Groups = Mapping[tuple[str, str, str], Sequence[LabelledAnswer]]


def _labels(groups: _Groups) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """A name for each question: its id, with a number where several questions share one."""
    shared = Counter(question_id for question_id, _, _ in groups)
    seen: Counter[str] = Counter()
    for index, key in enumerate(groups, start=1):
        question_id = key[0]
        seen[question_id] += 1
        if not question_id:
            yield f"q{index}", key
        else:
            yield (f"{question_id} ({seen[question_id]})" if shared[question_id] > 1 else question_id), key


def _assumptions(labelled: LabelledSet, groups: _Groups) -> list[str]:
    """What a reader of the figures should know about the exam that was made."""
    notes = []
    shared = Counter(question_id for question_id, _, _ in groups if question_id)
    if several := [each for each, count in shared.items() if count > 1]:
        notes.append(f"Several questions or references under one id are told apart: {_listed(several)}.")
    if not all(reference for _, _, reference in groups):
        notes.append("Questions without a reference are graded by their text alone.")
    if any(each.criteria for each in labelled.answers):
        notes.append("Marks by criterion are left out: without --exam a question has one criterion.")
    return notes


def _by_question(labelled: LabelledSet) -> dict[tuple[str, str, str], list[LabelledAnswer]]:
    groups: dict[tuple[str, str, str], list[LabelledAnswer]] = {}
    for each in labelled.answers:
        if not each.prompt and not each.reference:
            labelled.fail(
                each,
                "neither question nor reference. Name the columns (--map question=COLUMN, "
                "--map reference=COLUMN) or give the exam (--exam exam.yaml)",
            )
        groups.setdefault((each.question_id, each.prompt, each.reference), []).append(each)
    return groups


def _full_marks(labelled: LabelledSet, answers: Sequence[LabelledAnswer], maximum: float | None) -> float:
    points = maximum if maximum is not None else answers[0].max_points
    for each in answers:
        if maximum is None and each.max_points != points:
            labelled.fail(each, f"max_points is {each.max_points}, and {points} for the same question above")
        if points is None or not 0 < points <= MAX_POINTS:
            labelled.fail(each, f"full marks of {points or 0:g}; expected above 0, up to {MAX_POINTS:g}")
        if each.mark > points:
            labelled.fail(each, f"a mark of {each.mark:g} is above full marks of {points:g}; see --maximum")
    return points or 0.0


def _made_question(id_: str, prompt: str, reference: str, points: float) -> Question:
    description = reference or "Answers the question correctly and completely."
    return Question(
        id=id_[:50],
        type=QuestionType.SHORT_ANSWER,
        prompt=prompt or "Answer as the reference does.",
        points=points,
        criteria=(Criterion(CRITERION_ID, points, description),),
        reference=reference,
    )


def questions_of_exam(labelled: LabelledSet, exam: Exam, maximum: float | None) -> list[MarkedQuestion]:
    """The exam's questions with the set's answers; marks out of other full marks are scaled to the exam's."""
    known = {question.id: question for question in exam.questions}
    only = exam.questions[0].id if len(exam.questions) == 1 else ""
    answers: dict[str, list[LabelledAnswer]] = {}
    for each in labelled.answers:
        question_id = each.question_id or only
        if question_id not in known:
            named = f"question {question_id!r} is not in the exam" if question_id else "no question_id"
            labelled.fail(each, f"{named}; the exam has {_listed(list(known))}")
        answers.setdefault(question_id, []).append(_in_points(labelled, each, known[question_id], maximum))
    return [MarkedQuestion(id_, known[id_], tuple(answers[id_])) for id_ in known if id_ in answers]


def _in_points(
    labelled: LabelledSet, answer: LabelledAnswer, question: Question, maximum: float | None
) -> LabelledAnswer:
    """The answer with its marks in the question's points."""
    full = maximum or answer.max_points or question.points
    if answer.mark > full:
        labelled.fail(answer, f"a mark of {answer.mark:g} is above full marks of {full:g}; see --maximum")
    scale = question.points / full
    most = {criterion.id: criterion.points for criterion in question.criteria}
    for criterion_id, points in answer.criteria.items():
        if criterion_id not in most:
            labelled.fail(answer, f"criterion {criterion_id!r} is not in the rubric of {question.id}")
        if points * scale > most[criterion_id] + 1e-9:
            labelled.fail(
                answer, f"{points * scale:g} points for {criterion_id}; it has {most[criterion_id]:g}"
            )
    criteria = {criterion_id: points * scale for criterion_id, points in answer.criteria.items()}
    return replace(answer, mark=min(question.points, answer.mark * scale), criteria=criteria)


# --- what is measured ----------------------------------------------------------------------------


def plan(questions: Sequence[MarkedQuestion], choice: Choice, fitted: Callable[[Question], bool]) -> Plan:
    """The answers to grade; questions that the model was fitted on are left out unless they are wanted."""
    notes: list[str] = []
    chosen = _matching(questions, choice.pattern)
    chosen = _unfitted(chosen, choice, fitted, notes)
    tasks = [task for each in chosen for task in _tasks(each, choice, notes)]
    if not tasks:
        raise InvalidInput(
            f"No answers are left to measure: --examples {choice.examples} takes them all.", field="examples"
        )
    repeats = sum(_repeats_example(task) for task in tasks)
    if repeats:
        notes.append(f"{repeats} measured answers repeat a graded example word for word.")
    if choice.limit is not None and len(tasks) > choice.limit:
        notes.append(f"{choice.limit} of {len(tasks)} answers, drawn by seed {choice.seed}.")
        drawn = random.Random(choice.seed).sample(range(len(tasks)), choice.limit)  # noqa: S311  # no secret
        tasks = [tasks[index] for index in sorted(drawn)]
    return Plan(tuple(tasks), tuple(notes))


def _matching(questions: Sequence[MarkedQuestion], pattern: str) -> list[MarkedQuestion]:
    chosen = [each for each in questions if fnmatchcase(each.label, pattern)]
    if not chosen:
        labels = [each.label for each in questions]
        raise InvalidInput(f"--questions {pattern}: fits none of {_listed(labels)}.", field="questions")
    return chosen


def _unfitted(
    questions: list[MarkedQuestion], choice: Choice, fitted: Callable[[Question], bool], notes: list[str]
) -> list[MarkedQuestion]:
    known = [each for each in questions if fitted(each.question)]
    if not known:
        return questions
    count = f"{len(known)} of {len(questions)} questions"
    if choice.include_fitted:
        notes.append(f"{count} were used to fit the embedded model: its agreement there says little.")
        return questions
    notes.append(
        f"{count} are left out: the embedded model was fitted on them. --include-fitted takes them in."
    )
    rest = [each for each in questions if not fitted(each.question)]
    if not rest:
        raise InvalidInput(
            "The embedded model was fitted on every question of this set: its agreement there says little "
            "about your own. --include-fitted measures it all the same.",
            field="include_fitted",
        )
    return rest


def _tasks(marked: MarkedQuestion, choice: Choice, notes: list[str]) -> list[Task]:
    """The question's answers without those that become its examples."""
    if choice.examples == 0:
        return [Task(marked.label, marked.question, each) for each in marked.answers]
    if len(marked.answers) <= choice.examples:
        count = len(marked.answers)
        notes.append(f"{marked.label} is left out: of its {count} answers none are left beside the examples.")
        return []
    # drawn question by question: which others are measured makes no difference
    draw = random.Random(f"{choice.seed}/{marked.label}")  # noqa: S311  # no secret
    taken = frozenset(draw.sample(range(len(marked.answers)), choice.examples))
    examples = tuple(_example(marked.answers[index], marked.question) for index in sorted(taken))
    question = replace(marked.question, examples=(*marked.question.examples, *examples))
    return [
        Task(marked.label, question, each) for index, each in enumerate(marked.answers) if index not in taken
    ]


def _example(answer: LabelledAnswer, question: Question) -> GradedExample:
    ids = [criterion.id for criterion in question.criteria]
    known: Mapping[str, float] = answer.criteria
    complete = all(each in known for each in ids)
    return GradedExample(
        answer.answer, answer.mark, tuple((each, known[each]) for each in ids) if complete else ()
    )


def _repeats_example(task: Task) -> bool:
    said = task.answer.answer.casefold().split()
    return any(example.answer.casefold().split() == said for example in task.question.examples)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
