"""What is to be known about the embedded model before its figures are believed."""

import hashlib

from domain.exam import Question

#: the model whose marks rest on fitted parameters
EMBEDDED_MODEL = "local"


def parameters_version(model: str) -> str | None:
    """What tells one fit of the embedded model from the next; `None` for models that we did not fit."""
    if model != EMBEDDED_MODEL:
        return None
    from agents.local.parameters import PATH

    return hashlib.sha256(PATH.read_bytes()).hexdigest()[:12]


def was_fitted_on(model: str, question: Question) -> bool:
    """Whether the model's parameters come from answers to this very question."""
    if model != EMBEDDED_MODEL:
        return False
    from agents.local.parameters import fitted_on

    return fitted_on(question)
