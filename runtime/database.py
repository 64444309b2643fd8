"""The database of an installation, for commands that work on it without the API."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from db.postgres.pool import APPLICATION_ROLE, Postgres, open_pool
from runtime.resources import CLOSE_SECONDS, required
from runtime.settings import Settings


def postgres_url(settings: Settings) -> str:
    """The address that is set, or that of the stack that runs here; raises `MissingAddress`."""
    from runtime.embedded import running_stack

    if settings.postgres.url is not None:
        return settings.postgres.url.get_secret_value()
    running = running_stack(settings.folder.resolve())
    return required("ASSAY_POSTGRES__URL", running.addresses.postgres_url if running else None)


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Postgres]:
    """A small pool, closed at the end."""
    pool = open_pool(
        postgres_url(settings),
        min_size=1,
        max_size=2,
        acquire_timeout_seconds=settings.postgres.acquire_timeout_seconds,
        check_on_acquire=False,
        name="assay-command",
        role=APPLICATION_ROLE,
    )
    await pool.open()
    try:
        yield Postgres(pool)
    finally:
        await pool.close(CLOSE_SECONDS)
