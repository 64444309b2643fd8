"""The fit: a ridge over features, a kernel for examples, a spread and a doubt; seeds fixed, numpy only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from agents.local.calibration import Calibrated, Calibration
from agents.local.features import NAMES
from agents.local.marking import Grader, Sight, doubt_features, see
from agents.local.parameters import DOUBT_NAMES, FURTHEST, Doubt, Kernel, Parameters, Spread, prompt_hash
from benchmarks.local_grader.data import GradedQuestion
from benchmarks.local_grader.statistics import Numbers, pearson, weighted_kappa

EXAMPLES = 10
FOLDS = 5
#: strength of the ridge, in answers
_RIDGE = 100.0
#: the variance between questions, as a share of that within: what a question's own difficulty explains is
#: no merit of the features
_BETWEEN = 0.1
#: how alike answers are, by hand on the fitted questions' cross-validation: the optimum is flat
KERNEL = Kernel(constant=0.03, slope=0.1, vectors=0.15, words=0.15, noise=0.12)
#: what turns a statement around weighs at least this much: the data, where it is rare, ask for next to
#: nothing, and a mark that takes "does not rise" for "rises" would be believed by nobody
_LEAST = {"negation_differs": -0.02, "contradictions": -0.02}
#: features that lower a mark, and those that may do either; all others raise it or are left out
_SIGNS = {
    "copied_share": -1.0,
    "clueless": -1.0,
    "length": 0.0,
    "relative_length": 0.0,
}
_GAINS = np.arange(1.0, 3.01, 0.1)
#: this share of the answers, the most doubtful, has a confidence below a half without examples
_DOUBTED = 0.3
_STEPS = 4

_BLANK = Parameters(
    means=np.zeros(len(NAMES)),
    scales=np.ones(len(NAMES)),
    weights=np.zeros(len(NAMES)),
    intercept=0.5,
    kernel=KERNEL,
    spread=Spread(0.5, 1.0),
    doubt=Doubt(np.zeros(len(DOUBT_NAMES)), 0.0, 1.0),
    prompts=frozenset(),
)


@dataclass(frozen=True)
class Measured:
    """A question with its answers' features, measured once for all fits."""

    graded: GradedQuestion
    features: Numbers
    shares: Numbers


@dataclass(frozen=True)
class Estimates:
    """Estimates of answers of questions that were not fitted on, with what the doubt is fitted from."""

    sights: list[Sight]
    calibrated: list[Calibrated]
    shares: Numbers


def measure_question(graded: GradedQuestion) -> Measured:
    """The features of each answer."""
    sights = [see(graded.question, answer, _BLANK)[0] for answer in graded.answers]
    return Measured(graded, np.stack([each.features for each in sights]), np.array(graded.shares))


def fit(questions: Sequence[Measured]) -> Parameters:
    """All parameters; spread and doubt rest on estimates of questions outside each fold's fit."""
    alone, helped = (_unseen_estimates(questions, count) for count in (0, EXAMPLES))
    general = _fit_general(questions)
    spread = _fit_spread(alone, helped, general)
    parameters = replace(general, spread=spread)
    return replace(
        parameters,
        doubt=_fit_doubt(alone, helped, parameters),
        prompts=frozenset(prompt_hash(each.graded.question.prompt) for each in questions),
    )


def _fit_general(questions: Sequence[Measured]) -> Parameters:
    """Generalised least squares with a random intercept a question and a fixed one a source, ridged."""
    features = np.vstack([each.features for each in questions])
    means, scales = features.mean(axis=0), features.std(axis=0) + 1e-9
    sources = sorted({each.graded.source for each in questions})
    rows, wanted = [], []
    for each in questions:
        fixed = np.tile([float(each.graded.source == name) for name in sources], (len(each.shares), 1))
        block = np.hstack([np.clip((each.features - means) / scales, -FURTHEST, FURTHEST), fixed])
        taken = 1.0 - 1.0 / np.sqrt(1.0 + len(block) * _BETWEEN)
        rows.append(block - taken * block.mean(axis=0))
        wanted.append(each.shares - taken * each.shares.mean())
    design, target = np.vstack(rows), np.concatenate(wanted)
    solved = _solve_with_signs(design, target)
    # no source's leniency is the right one: their middle
    return replace(
        _BLANK,
        means=means,
        scales=scales,
        weights=solved[: len(NAMES)],
        intercept=float(solved[len(NAMES) :].mean()),
    )


def _solve_with_signs(design: Numbers, target: Numbers) -> Numbers:
    """The ridge without the features whose weight has the wrong sign: they tell of the data alone."""
    fixed = design.shape[1] - len(NAMES)
    least = np.array([_LEAST.get(name, 0.0) for name in NAMES] + [0.0] * fixed)
    target = target - design @ least
    wanted = np.array([_SIGNS.get(name, 1.0) for name in NAMES] + [0.0] * fixed)
    penalty = np.array([_RIDGE] * len(NAMES) + [1e-3] * fixed)
    kept = least == 0.0
    while True:
        part = design[:, kept]
        solved = np.zeros(design.shape[1])
        solved[kept] = np.linalg.solve(part.T @ part + np.diag(penalty[kept]), part.T @ target)
        wrong = solved * wanted < 0.0
        if not wrong.any():
            return np.asarray(solved + least)
        kept &= ~wrong


def folds(questions: Sequence[Measured]) -> list[tuple[list[Measured], list[Measured]]]:
    """The questions in parts for fitting and for looking, by hash, each source spread evenly."""
    order = sorted(questions, key=lambda each: (each.graded.source, prompt_hash(each.graded.question.prompt)))
    return [
        ([each for index, each in enumerate(order) if index % FOLDS != fold], order[fold::FOLDS])
        for fold in range(FOLDS)
    ]


def _unseen_estimates(questions: Sequence[Measured], examples: int, source: str = "") -> Estimates:
    """Estimates of each fold's questions, of one source or of all, by a fit on the other folds."""
    sights: list[Sight] = []
    calibrated: list[Calibrated] = []
    shares: list[float] = []
    for fitted_on, unseen in folds(questions):
        parameters = _fit_general(fitted_on)
        for number, each in enumerate(unseen):
            if source not in ("", each.graded.source):
                continue
            seen = [see(each.graded.question, answer, parameters)[0] for answer in each.graded.answers]
            order = np.random.default_rng([examples, number]).permutation(len(seen))
            chosen, others = order[:examples], order[examples:]
            calibration = Calibration(
                parameters.kernel, [seen[index].observed for index in chosen], list(each.shares[chosen])
            )
            sights += [seen[index] for index in others]
            calibrated += [calibration(seen[index].observed) for index in others]
            shares += list(each.shares[others])
    return Estimates(sights, calibrated, np.array(shares))


def cross_validate(questions: Sequence[Measured]) -> dict[str, dict[str, float]]:
    """Pearson r by source on questions outside each fold's fit, without and with examples; not rounded."""
    found: dict[str, dict[str, float]] = {}
    for name in sorted({each.graded.source for each in questions}):
        for examples in (0, EXAMPLES):
            estimates = _unseen_estimates(questions, examples, name)
            given = np.array([each.estimate for each in estimates.calibrated])
            found.setdefault(name, {})[f"{examples}_examples"] = round(pearson(given, estimates.shares), 3)
    return found


def _fit_spread(alone: Estimates, helped: Estimates, general: Parameters) -> Spread:
    """The gain at which marks agree best with a teacher's, in weighted kappa and correlation together."""
    centre = float(np.mean([each.estimate for each in alone.calibrated]))

    def agreement(gain: float) -> float:
        parameters = replace(general, spread=Spread(centre, gain))
        pairs = [(_drawn(each, parameters), each.shares) for each in (alone, helped)]
        return sum(weighted_kappa(*pair, _STEPS) + pearson(*pair) for pair in pairs)

    return Spread(round(centre, 4), round(float(max(_GAINS, key=agreement)), 2))


def _drawn(estimates: Estimates, parameters: Parameters) -> Numbers:
    grader = Grader(parameters, Calibration(parameters.kernel, [], []))
    pairs = zip(estimates.sights, estimates.calibrated, strict=True)
    return np.array([grader.drawn_apart(sight, calibrated) for sight, calibrated in pairs])


def _fit_doubt(alone: Estimates, helped: Estimates, parameters: Parameters) -> Doubt:
    """The expected error by least squares; its scale leaves the most doubtful part below a half."""
    alone_values, alone_errors = _doubts(alone, parameters)
    helped_values, helped_errors = _doubts(helped, parameters)
    values = np.vstack([alone_values, helped_values])
    errors = np.concatenate([alone_errors, helped_errors])
    weights = np.linalg.solve(values.T @ values + 1e-3 * np.eye(values.shape[1]), values.T @ errors)
    expected = alone_values @ weights
    return Doubt(weights, float(np.quantile(expected, 1.0 - _DOUBTED)), float(expected.std()) / 2.0)


def _doubts(estimates: Estimates, parameters: Parameters) -> tuple[Numbers, Numbers]:
    drawn = _drawn(estimates, parameters)
    triples = zip(estimates.sights, estimates.calibrated, drawn, strict=True)
    values = np.stack([doubt_features(sight, calibrated, float(each)) for sight, calibrated, each in triples])
    return values.astype(np.float64), np.asarray(np.abs(drawn - estimates.shares))
