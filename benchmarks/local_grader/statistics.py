"""Agreement between marks: correlations, weighted kappa, accuracy."""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]


def pearson(given: Numbers, wanted: Numbers) -> float:
    """The correlation; 0 where one of both never varies."""
    if given.std() < 1e-12 or wanted.std() < 1e-12:
        return 0.0
    return float(np.corrcoef(given, wanted)[0, 1])


def spearman(given: Numbers, wanted: Numbers) -> float:
    """The correlation of the ranks, ties shared."""
    return pearson(_ranks(given), _ranks(wanted))


def weighted_kappa(given: Numbers, wanted: Numbers, steps: int) -> float:
    """The quadratically weighted kappa of two shares, each rounded to so many steps."""
    one, other = (np.rint(each * steps).astype(int) for each in (given, wanted))
    distance = (np.arange(steps + 1)[:, None] - np.arange(steps + 1)[None, :]) ** 2
    counts = np.zeros((steps + 1, steps + 1))
    np.add.at(counts, (one, other), 1.0)
    chance = np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum()
    expected = float((distance * chance).sum())
    return 1.0 - float((distance * counts).sum()) / expected if expected else 0.0


def _ranks(values: Numbers) -> Numbers:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[place], dtype=np.float64)
