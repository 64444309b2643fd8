"""Domain values as jsonb columns."""

import json

from psycopg.types.json import Jsonb

from domain.documents import plain


def jsonb(value: object) -> Jsonb:
    """The value, a dataclass, as jsonb takes it: a NUL, which it refuses, becomes U+FFFD."""
    return Jsonb(plain(value), dumps=_dumps)


def _dumps(document: object) -> str:
    return json.dumps(document).replace("\\u0000", "\\ufffd")
