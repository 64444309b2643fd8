"""What a teacher's graded examples change: the general model's error on them, carried to like answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agents.local.parameters import Kernel
from agents.local.vectors import Vector


@dataclass(frozen=True)
class Observed:
    """An answer as one criterion sees it: the general model's estimate, and what makes answers alike."""

    estimate: float
    #: a unit vector of its words, without the question's direction; or zeros
    direction: Vector
    stems: frozenset[str]


@dataclass(frozen=True)
class Calibrated:
    """An estimate after the examples, and the standard deviation of what they leave open."""

    estimate: float
    deviation: float
    #: `deviation` as a share of what it is without examples
    openness: float


class Calibration:
    """Gaussian process regression of the general model's error over the examples of one criterion."""

    def __init__(self, kernel: Kernel, examples: Sequence[Observed], shares: Sequence[float]) -> None:
        self._kernel = kernel
        self.count = len(examples)
        self._examples = examples
        if not examples:
            return
        covariance = np.array([[_covariance(kernel, one, other) for other in examples] for one in examples])
        self._inverse = np.linalg.inv(covariance + kernel.noise * np.eye(len(examples)))
        errors = np.array(shares) - np.array([each.estimate for each in examples])
        self._carried = self._inverse @ errors

    def __call__(self, answer: Observed) -> Calibrated:
        """The answer's estimate, corrected by the errors on the examples that it is like."""
        alone = _covariance(self._kernel, answer, answer)
        if not self._examples:
            return Calibrated(answer.estimate, alone**0.5, 1.0)
        likeness = np.array([_covariance(self._kernel, answer, each) for each in self._examples])
        estimate = answer.estimate + float(likeness @ self._carried)
        left = max(0.0, alone - float(likeness @ self._inverse @ likeness))
        return Calibrated(float(np.clip(estimate, 0.0, 1.0)), left**0.5, (left / alone) ** 0.5)


def _covariance(kernel: Kernel, one: Observed, other: Observed) -> float:
    return float(
        kernel.constant
        + kernel.slope * (one.estimate - 0.5) * (other.estimate - 0.5)
        + kernel.vectors * (one.direction @ other.direction)
        + kernel.words * _set_cosine(one.stems, other.stems)
    )


def _set_cosine(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / (len(one) * len(other)) ** 0.5 if one and other else 0.0
