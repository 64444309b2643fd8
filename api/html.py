"""Pages of HTML: self-contained, no scripts, under a strict policy; `environment()` loads `base.html`."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

_FOLDER = Path(__file__).parent / "templates"
_STYLE = (_FOLDER / "style.css").read_text(encoding="utf-8")
_STYLE_SHA256 = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

#: the one style is named by its digest: nothing else is run, drawn or fetched, whatever a text smuggles in
CONTENT_SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_SHA256}'; base-uri 'none'; form-action 'none'"
)

# what would turn the text around it about, or cannot be seen: shown as a replacement character
_CONTROLS = (*range(9), 11, 12, *range(14, 32), *range(127, 160))
_TURNS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_UNSEEN = dict.fromkeys((*_CONTROLS, *_TURNS, 0xFFFE, 0xFFFF), "\ufffd")


def environment(folders: Sequence[Path] = ()) -> Environment:
    """Templates that escape; those in `folders` may extend `base.html` and its style."""
    made = Environment(
        loader=FileSystemLoader([*folders, _FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_seen,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["style"] = Markup(_STYLE)  # noqa: S704  # a file of ours
    made.globals["policy"] = CONTENT_SECURITY_POLICY
    return made


def visible(text: str) -> str:
    """The text with a mark where it had characters that are not seen or that turn others about."""
    return text.translate(_UNSEEN)


def _seen(value: object) -> object:
    return visible(value) if type(value) is str else value
