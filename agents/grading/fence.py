"""The marks that fence student text off in prompts (G8.5): secret, and the same for every retry."""

import hmac
from itertools import count

#: hexadecimal digits of a mark; 128 bits that nobody guesses
MARK_LENGTH = 32


def fence_mark(secret: bytes, key: str, text: str) -> str:
    """The mark for text under an idempotency key; it stands nowhere in the text."""
    for attempt in count():
        # so that no text can contain its mark, not even one whose author has read an earlier prompt
        name = key if attempt == 0 else f"{key}#{attempt}"
        mark = hmac.digest(secret, name.encode(), "sha256").hex()[:MARK_LENGTH]
        if mark not in text:
            return mark
    raise AssertionError("unreachable: the count has no end")
