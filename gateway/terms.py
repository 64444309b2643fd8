"""How long calls to a model may take, and what a doubt about one costs."""

from collections.abc import Callable
from dataclasses import dataclass

from domain.ledger import DoubtRule


@dataclass(frozen=True)
class CallTerms:
    """How long a model's reply may take, how long another attempt waits for it, and what a doubt costs."""

    timeout_seconds: float = 120.0
    wait_seconds: float = 120.0
    doubt_rule: DoubtRule = DoubtRule.FULL


TermsOf = Callable[[str], CallTerms]
