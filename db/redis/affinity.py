"""Which model a session prefers: for an hour, claimed by whoever answered, and never the truth (O5)."""

import structlog

from db.redis.connection import GONE_OR_REFUSED, RedisLink
from domain.gateway import Affinity

AFFINITY_SECONDS = 3600

# ARGV: the version that was seen, the model, the time to live. A preference that has expired since was nobody's claim.
_CLAIM = """
local current = tonumber(redis.call('HGET', KEYS[1], 'version') or '0')
local seen = tonumber(ARGV[1])
if current ~= 0 and current ~= seen then return 0 end
redis.call('HSET', KEYS[1], 'model', ARGV[2], 'version', math.max(current, seen) + 1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return 1
"""


def affinity_key(tenant_id: str, session_id: str) -> str:
    """Where a session's preference is; no tenant's id has a slash in it."""
    return f"session:{{{tenant_id}/{session_id}}}:affinity"


class RedisAffinities:
    """The port `Affinities`; without Redis nothing is preferred, and nothing fails."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._claim = link.client.register_script(_CLAIM)
        self._log = structlog.get_logger("assay.affinity")

    async def read(self, tenant_id: str, session_id: str) -> Affinity | None:
        """The session's preference, if there is one and Redis answers."""
        try:
            with self._link.use() as client:
                model, version = await client.hmget(affinity_key(tenant_id, session_id), "model", "version")
        except GONE_OR_REFUSED:
            return None
        return Affinity(str(model), int(version)) if model and version else None

    async def claim(self, tenant_id: str, session_id: str, model: str, *, seen: Affinity | None) -> bool:
        """Prefer the model from now on, unless another call claimed since `seen` was read."""
        arguments: list[str | int] = [seen.version if seen else 0, model, AFFINITY_SECONDS]
        try:
            with self._link.use() as client:
                return bool(await self._claim([affinity_key(tenant_id, session_id)], arguments, client))
        except GONE_OR_REFUSED as error:
            self._log.info("affinity_not_claimed", reason=type(error).__name__)
            return False
