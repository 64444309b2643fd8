"""The fitted numbers of the embedded model, as `python -m benchmarks.local_grader fit` wrote them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from agents.local.features import NAMES
from agents.local.vectors import Vector
from domain.exam import Question

PATH = Path(__file__).with_name("parameters.json")
#: beyond so many standard deviations a feature says no more
FURTHEST = 4.0
#: what a doubt is worked out from, in this order
DOUBT_NAMES = ("constant", "distance_from_half", "estimate", "deviation", "recall_discounted", "length")


@dataclass(frozen=True)
class Kernel:
    """How alike two answers to one question are, as variances of what the general model leaves open."""

    constant: float
    slope: float
    vectors: float
    words: float
    noise: float


@dataclass(frozen=True)
class Spread:
    """How far estimates are drawn apart, so that marks spread as a teacher's do."""

    centre: float
    gain: float


@dataclass(frozen=True)
class Doubt:
    """Expected error by `DOUBT_NAMES`; at `threshold` the confidence is a half."""

    weights: Vector
    threshold: float
    scale: float

    def confidence(self, values: Vector) -> float:
        """Between 0 and 1, the less the larger the expected error."""
        beyond = (float(values @ self.weights) - self.threshold) / self.scale
        return float(1.0 / (1.0 + np.exp(np.clip(beyond, -30.0, 30.0))))


@dataclass(frozen=True)
class Parameters:
    """Everything that was fitted, and the prompts that it was fitted on."""

    means: Vector
    scales: Vector
    weights: Vector
    intercept: float
    kernel: Kernel
    spread: Spread
    doubt: Doubt
    prompts: frozenset[str]

    def estimate(self, features: Vector) -> float:
        """The share of the points that the general model expects, between 0 and 1."""
        standardised = np.clip((features - self.means) / self.scales, -FURTHEST, FURTHEST)
        return float(np.clip(self.intercept + standardised @ self.weights, 0.0, 1.0))


@lru_cache(maxsize=1)
def shipped() -> Parameters:
    """The parameters that come with the package."""
    return read_parameters(json.loads(PATH.read_text(encoding="utf-8")))


def read_parameters(document: Mapping[str, Any]) -> Parameters:
    """The parameters that the fitting script wrote."""
    features = [document["features"][name] for name in NAMES]
    doubt = document["doubt"]
    return Parameters(
        means=np.array([each["mean"] for each in features]),
        scales=np.array([each["scale"] for each in features]),
        weights=np.array([each["weight"] for each in features]),
        intercept=document["intercept"],
        kernel=Kernel(**document["kernel"]),
        spread=Spread(**document["spread"]),
        doubt=Doubt(
            np.array([doubt["weights"][name] for name in DOUBT_NAMES]), doubt["threshold"], doubt["scale"]
        ),
        prompts=frozenset(document["fitted_prompts"]),
    )


def fitted_on(question: Question) -> bool:
    """Whether the shipped parameters were fitted on answers to this prompt: figures on it flatter."""
    return prompt_hash(question.prompt) in shipped().prompts


def prompt_hash(prompt: str) -> str:
    """A short hash that tells prompts apart, whatever their spaces and case."""
    return hashlib.sha256(" ".join(prompt.lower().split()).encode()).hexdigest()[:12]
