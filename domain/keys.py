"""Keys, tenants and profiles as their administrators see them: terms, bounds, ports."""

import re
import secrets
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Literal, Protocol, TypedDict, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from domain.completion import DEFAULT_MAX_TOKENS
from domain.errors import InvalidInput
from domain.gateway import RateLimit
from domain.ledger import MAX_AMOUNT, AccountBalance, DaySpend, LedgerEvent, Mode, Scope
from domain.money import Money
from domain.ports import Keys

#: `admin` may everything in its tenant, and implies the others
KeyScope = Literal["admin", "submit", "review", "read", "model"]
KEY_SCOPES: tuple[KeyScope, ...] = get_args(KeyScope)
KeyState = Literal["active", "expired", "revoked"]

SECRET_START = "assay_"  # noqa: S105  # what every secret begins with is none
PREFIX_LENGTH = 12

MAX_NAME_LENGTH = 255
MAX_MODELS = 100
MAX_PATTERN_LENGTH = 200
MAX_REPLY_TOKENS = 200_000
MAX_REQUESTS_PER_MINUTE = 1_000_000
MAX_TOKENS_PER_MINUTE = 1_000_000_000
MAX_CALLS_AT_ONCE = 100_000
#: what should last longer is better made anew
LONGEST_LIFE = timedelta(days=3660)

TENANT_ID_PATTERN = r"[a-z0-9][a-z0-9-]{0,62}"
PROFILE_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
#: they name a setting of the machine, which the next machine does not share
_LOCAL_ZONES = ("localtime", "posixrules")
#: half a surrogate pair is no character, and no store keeps it; the others end a line or steer a terminal
_UNWRITTEN = ("Cc", "Cs", "Zl", "Zp")
#: what turns the writing of the text that follows: a name must not look like another one
_TURNING = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


def new_secret() -> str:
    """A key's secret: 256 random bits."""
    return SECRET_START + secrets.token_urlsafe(32)


def prefix_of(secret: str) -> str:
    """What is shown of a secret, so that its owner knows it again; of a short one less."""
    return secret[: min(PREFIX_LENGTH, len(secret) // 4)]


@dataclass(frozen=True)
class KeyTerms:
    """What a key may do, and how much of it; raises `InvalidInput` for what no key can have.

    No models stand for all of them, `None` for no limit; a limit of zero dollars lets nothing through that
    costs money. The order of scopes means nothing.
    """

    name: str
    scopes: tuple[KeyScope, ...]
    profile: str = ""
    models: tuple[str, ...] = ()
    default_max_tokens: int = DEFAULT_MAX_TOKENS
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    limit: Money | None = None
    mode: Mode | None = None
    expires_at: datetime | None = None

    def __post_init__(self) -> None:
        """Check all that does not depend on the time."""
        _check_name(self.name)
        _check_scopes(self.scopes)
        if self.profile:
            check_profile(self.profile)
        _check_models(self.models)
        _check_number("default_max_tokens", self.default_max_tokens, MAX_REPLY_TOKENS)
        _check_rates(self.requests_per_minute, self.tokens_per_minute, self.max_concurrent)
        _check_amount("limit", self.limit)


class KeyChanges(TypedDict, total=False):
    """Terms that may change; its scopes are what they were when the key was made."""

    name: str
    profile: str
    models: tuple[str, ...]
    default_max_tokens: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None
    limit: Money | None
    mode: Mode | None
    expires_at: datetime | None


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret, and the balance of its account."""

    id: str
    tenant_id: str
    prefix: str
    terms: KeyTerms
    created_at: datetime
    revoked_at: datetime | None
    balance: AccountBalance

    def state(self, now: datetime) -> KeyState:
        """Whether it opens anything at that moment."""
        if self.revoked_at is not None:
            return "revoked"
        expires_at = self.terms.expires_at
        return "expired" if expires_at is not None and expires_at <= now else "active"


@dataclass(frozen=True)
class MadeKey:
    """A key, and its secret when it has been made this very moment: it is known never again."""

    key: ApiKey
    secret: str | None


@dataclass(frozen=True)
class Revocation:
    """A key that has been revoked, and how many active keys with the scope `admin` its tenant has left."""

    key: ApiKey
    admins_left: int

    @property
    def warning(self) -> str | None:
        """What somebody who revoked the last admin key should know."""
        if self.admins_left:
            return None
        return (
            f"The tenant {self.key.tenant_id} has no admin key left: only the operator can make one, with "
            f"`assay key create NAME --scope admin --tenant {self.key.tenant_id}`."
        )


@dataclass(frozen=True)
class TenantTerms:
    """What a tenant has set for itself; raises `InvalidInput` for what it cannot set.

    Its day begins in its time zone; the rates are of all its keys together.
    """

    name: str
    time_zone: str = "UTC"
    call_limit: Money | None = None
    daily_limit: Money | None = None
    mode: Mode | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None

    def __post_init__(self) -> None:
        """Check every term."""
        _check_name(self.name)
        _check_time_zone(self.time_zone)
        _check_amount("call_limit", self.call_limit)
        _check_amount("daily_limit", self.daily_limit)
        _check_rates(self.requests_per_minute, self.tokens_per_minute, self.max_concurrent)


class TenantChanges(TypedDict, total=False):
    """Terms of a tenant that shall change."""

    name: str
    time_zone: str
    call_limit: Money | None
    daily_limit: Money | None
    mode: Mode | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    max_concurrent: int | None


@dataclass(frozen=True)
class Tenant:
    """A tenant as it stands."""

    id: str
    terms: TenantTerms
    created_at: datetime


def rate_limits(
    subject: str, requests_per_minute: int | None, tokens_per_minute: int | None, max_concurrent: int | None
) -> tuple[RateLimit, ...]:
    """The limits of a subject that are set."""
    capacities: tuple[tuple[Literal["requests", "tokens", "calls"], int | None], ...] = (
        ("requests", requests_per_minute),
        ("tokens", tokens_per_minute),
        ("calls", max_concurrent),
    )
    return tuple(RateLimit(subject, unit, capacity) for unit, capacity in capacities if capacity is not None)


# --- checks ------------------------------------------------------------------------------------------


def check_tenant_id(tenant_id: str) -> str:
    """The id, if a tenant may have it; raises `InvalidInput`."""
    if not re.fullmatch(TENANT_ID_PATTERN, tenant_id):
        raise InvalidInput(
            "tenant_id: 1 to 63 lower-case letters, digits and hyphens, no hyphen first.", field="tenant_id"
        )
    return tenant_id


def check_profile(name: str) -> str:
    """The name, if a profile may have it; raises `InvalidInput`."""
    if not re.fullmatch(PROFILE_PATTERN, name):
        raise InvalidInput(
            "profile: 1 to 100 letters, digits, dots, hyphens and underscores, a letter or digit first.",
            field="profile",
        )
    return name


def unknown_profile(name: str) -> InvalidInput:
    """What is said of a profile that is not there: a call that it should pay would have no budget."""
    return InvalidInput(
        f"profile: there is no profile {name!r}; state its budget first: PUT /v1/profiles/{name}, or "
        f"`assay ledger limit {name} USD`.",
        field="profile",
    )


def check_expiry(expires_at: datetime | None, now: datetime) -> None:
    """Raise `InvalidInput` for a moment that is no end of a key's life."""
    if expires_at is None:
        return
    if expires_at.tzinfo is None:
        raise InvalidInput(
            "expires_at: state the offset from UTC, such as 2027-01-01T00:00:00Z.", field="expires_at"
        )
    if not now < expires_at <= now + LONGEST_LIFE:
        raise InvalidInput(
            f"expires_at: in the future, and within {LONGEST_LIFE.days} days; to end a key now, revoke it.",
            field="expires_at",
        )


def _check_name(name: str) -> None:
    if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.strip():
        raise InvalidInput(f"name: 1 to {MAX_NAME_LENGTH} characters.", field="name")
    _check_characters("name", name)


def _check_scopes(scopes: Sequence[str]) -> None:
    unknown = sorted(set(scopes) - set(KEY_SCOPES))
    if unknown or not scopes:
        wrong = f"{unknown[0]!r} is none" if unknown else "state at least one"
        raise InvalidInput(f"scopes: {wrong}; known: {', '.join(KEY_SCOPES)}.", field="scopes")


def _check_models(models: Sequence[str]) -> None:
    if len(models) > MAX_MODELS:
        raise InvalidInput(f"models: at most {MAX_MODELS} patterns.", field="models")
    for each in models:
        if not 1 <= len(each) <= MAX_PATTERN_LENGTH or any(map(str.isspace, each)):
            raise InvalidInput(
                f"models: a pattern has 1 to {MAX_PATTERN_LENGTH} characters and no space, such as openai:*.",
                field="models",
            )
        _check_characters("models", each)


def _check_characters(field: str, text: str) -> None:
    for position, character in enumerate(text):
        turns = unicodedata.bidirectional(character) in _TURNING
        if turns or unicodedata.category(character) in _UNWRITTEN:
            raise InvalidInput(
                f"{field}: character {position + 1} is the control character U+{ord(character):04X}.",
                field=field,
            )


def _check_rates(
    requests_per_minute: int | None, tokens_per_minute: int | None, max_concurrent: int | None
) -> None:
    _check_number("requests_per_minute", requests_per_minute, MAX_REQUESTS_PER_MINUTE)
    _check_number("tokens_per_minute", tokens_per_minute, MAX_TOKENS_PER_MINUTE)
    _check_number("max_concurrent", max_concurrent, MAX_CALLS_AT_ONCE)


def _check_number(field: str, number: int | None, most: int) -> None:
    if number is not None and not 1 <= number <= most:
        raise InvalidInput(f"{field}: between 1 and {most:,}.", field=field)


def _check_amount(field: str, amount: Money | None) -> None:
    if amount is not None and not 0 <= amount <= MAX_AMOUNT:
        raise InvalidInput(f"{field}: between 0 and {MAX_AMOUNT} dollars.", field=field)


def _check_time_zone(name: str) -> None:
    try:
        ZoneInfo(name)
        known = name not in _LOCAL_ZONES
    except (ZoneInfoNotFoundError, ValueError, OSError):
        known = False
    if not known:
        raise InvalidInput(
            "time_zone: no such IANA time zone; state one such as UTC or Asia/Shanghai.", field="time_zone"
        )


# --- ports -------------------------------------------------------------------------------------------


class KeyRegister(Keys, Protocol):
    """A tenant's keys; what is not there, or another tenant's, is `NotFound`."""

    async def create(self, tenant_id: str, key_id: str, terms: KeyTerms) -> MadeKey:
        """Make the key of that id; a repetition answers the key that is there, without its secret."""
        ...

    async def read(self, tenant_id: str, key_id: str) -> ApiKey:
        """The key."""
        ...

    async def list_of_tenant(self, tenant_id: str, page: int, page_size: int) -> tuple[list[ApiKey], int]:
        """One page, newest first, revoked ones too, and how many there are."""
        ...

    async def change(self, tenant_id: str, key_id: str, changes: KeyChanges) -> ApiKey:
        """Change terms, all of them or none, from the next request on; a revoked key is a `Conflict`."""
        ...

    async def revoke(self, tenant_id: str, key_id: str) -> Revocation:
        """End the key's life now and for ever; a repetition changes nothing."""
        ...


class Tenants(Protocol):
    """Tenants and their profiles; what is not there is `NotFound`."""

    async def create(
        self, tenant_id: str, terms: TenantTerms, key_id: str, key: KeyTerms
    ) -> tuple[Tenant, MadeKey]:
        """Make the tenant with its first key, or neither; a tenant that has other keys is a `Conflict`."""
        ...

    async def read(self, tenant_id: str) -> Tenant:
        """The tenant."""
        ...

    async def list_all(self, page: int, page_size: int) -> tuple[list[Tenant], int]:
        """One page, by id, and how many there are."""
        ...

    async def change(self, tenant_id: str, changes: TenantChanges) -> Tenant:
        """Change terms, all of them or none; they hold for the next call."""
        ...

    async def profile(self, tenant_id: str, name: str) -> AccountBalance:
        """The account of a profile that has a budget or has spent something."""
        ...

    async def set_profile(self, tenant_id: str, name: str, limit: Money | None) -> AccountBalance:
        """State a profile's budget."""
        ...


class Costs(Protocol):
    """What a tenant has spent, and where (L8)."""

    async def today(self, tenant_id: str) -> date:
        """The tenant's day."""
        ...

    async def spend_today(self, tenant_id: str, *, scope: str = "all", profile: str | None = None) -> Money:
        """What was spent today, in all or of one profile; raises `InvalidInput`."""
        ...

    async def days(self, tenant_id: str, first: date, last: date) -> list[DaySpend]:
        """The days on which anything was held or spent, newest first."""
        ...

    async def balances(
        self, tenant_id: str, page: int, page_size: int, *, scope: Scope | None, subject: str | None
    ) -> tuple[list[AccountBalance], int]:
        """One page of accounts, and how many there are."""
        ...

    async def statement(
        self, tenant_id: str, page: int, page_size: int, *, first: date, last: date, batch_id: str | None
    ) -> tuple[list[LedgerEvent], int]:
        """One page of the events of these days, newest first, and how many there are."""
        ...
