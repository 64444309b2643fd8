"""Where an agent is: live from Redis, from its checkpoint in Postgres when Redis has nothing (G2.2)."""

from datetime import UTC

from db.postgres.pool import Postgres
from db.redis.progress import RedisStatePublisher
from domain.batch import AgentState

STATE_SQL = "SELECT state, updated_at FROM workflow_state_cache WHERE workflow_id = %s"


class StoredAgentStates:
    """The latest durable state of a workflow's agent."""

    def __init__(self, live: RedisStatePublisher, postgres: Postgres) -> None:
        self._live = live
        self._postgres = postgres

    async def latest(self, workflow_id: str) -> AgentState | None:
        """The state, or `None` before the agent's first checkpoint."""
        if (live := await self._live.read(workflow_id)) is not None:
            return live
        row = await self._postgres.row(STATE_SQL, [workflow_id])
        if row is None:
            return None
        state = row["state"]
        return AgentState(
            thread_id=state["thread_id"],
            checkpoint_id=state["checkpoint_id"],
            stage=state["stage"],
            percentage=100.0 if state["stage"] == "done" else 0.0,
            updated_at=row["updated_at"].astimezone(UTC).isoformat(),
        )
