"""The settings: one frozen model, read once from the environment (`ASSAY_…`), printed with secrets masked."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from domain.batch import MAX_TENANT_BYTES
from domain.completion import DEFAULT_MAX_TOKENS
from domain.timings import WINDOW_FILES, Timings


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PostgresSettings(_Part):
    """Where Postgres is, and its pool (G1.2)."""

    url: SecretStr | None = None
    min_size: int = Field(5, ge=0, le=100)
    max_size: int = Field(20, ge=1, le=200)
    acquire_timeout_seconds: float = Field(5.0, gt=0, le=60)
    idle_seconds: float = Field(300, gt=0)
    lifetime_seconds: float = Field(3600, gt=0)


class RedisSettings(_Part):
    """Where Redis or Valkey is, and its pool."""

    url: SecretStr | None = None
    max_connections: int = Field(50, ge=1, le=1000)
    timeout_seconds: float = Field(5.0, gt=0, le=60)
    sharing_processes: int = Field(
        1, ge=1, le=10_000, description="among so many processes rate limits are shared out while it is gone"
    )


class TemporalSettings(_Part):
    """Where Temporal is; the queues, so that environments can share a server."""

    address: str | None = None
    namespace: str = "default"
    ui_url: str | None = None
    orchestration_queue: str = "orchestration"
    cognition_queue: str = "cognition"
    parsing_queue: str = "parsing"


class ObjectSettings(_Part):
    """Where files are kept: a `file://` or `s3://` address; a folder in the data folder by default."""

    url: str | None = None


class ApiSettings(_Part):
    """Where the API listens, and the key that clients of this machine use."""

    host: str = "127.0.0.1"
    port: int = Field(0, ge=0, le=65535, description="0: any free one")
    url: str | None = Field(None, description="for clients: where the API is")
    key: SecretStr | None = Field(None, description="for clients, and made known to the API at its start")
    max_file_bytes: int = Field(1024**3, gt=0)
    max_tenant_bytes: int = Field(MAX_TENANT_BYTES, gt=0)


class WorkerSettings(_Part):
    """How much a worker does at once, and how soon its death is noticed."""

    max_assessments: int = Field(100, ge=1, le=1000)
    max_parallel_calls: int = Field(8, ge=1, le=100, description="model calls of one submission at once")
    parsing_processes: int | None = Field(
        None, ge=1, le=256, description="logs parsed at once; one a processor by default"
    )
    heartbeat_timeout_seconds: float = Field(10.0, ge=1, le=600)
    state_interval_seconds: float = Field(30.0, gt=0, le=3600)
    checkpoint_retry_seconds: tuple[float, ...] = Field(
        (0.5, 2.0, 8.0), max_length=3, description="waits before a checkpoint is saved again"
    )
    keep_threads_days: int = Field(7, ge=0, le=3650, description="whole history, once the batch has ended")
    keep_last_checkpoints_days: int = Field(
        90, ge=0, le=3650, description="the last checkpoint, from then on"
    )
    task_timeout_seconds: float = Field(10.0, ge=1, le=120)
    window_files: int = Field(WINDOW_FILES, ge=1, le=WINDOW_FILES)
    shutdown_seconds: float = Field(25.0, ge=0, le=300)
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = Field(None, ge=0, le=65535)

    def timings(self) -> Timings:
        """What travels in the input of a new batch."""
        return Timings(
            heartbeat_timeout_seconds=self.heartbeat_timeout_seconds,
            state_interval_seconds=self.state_interval_seconds,
            task_timeout_seconds=self.task_timeout_seconds,
        )


class UpstreamSettings(_Part):
    """How much one provider is asked, by all processes together."""

    max_concurrent: int | None = Field(None, ge=1, description="calls at once")
    requests_per_minute: int | None = Field(None, ge=1)


class CompatibleServer(UpstreamSettings):
    """A server of large models that speaks OpenAI's protocol."""

    url: str = Field(pattern="^https?://", description="up to and with `/v1`")
    api_key: SecretStr | None = None
    structured_output: bool = Field(True, description="false for a server that refuses a JSON Schema")
    advisory: bool = Field(False, description="true for models whose marks are only proposals for a human")


_ProviderName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,49}$")]
_RouteName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,99}$")]
_Route = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(min_length=1, max_length=10)
]


class ModelSettings(_Part):
    """The models beside the embedded one."""

    script: Path | None = Field(None, description="a script makes the model `scripted` available")
    openai_api_key: SecretStr | None = Field(None, description="makes `openai:…` available")
    anthropic_api_key: SecretStr | None = Field(None, description="makes `anthropic:…` available")
    compatible: dict[_ProviderName, CompatibleServer] = Field(
        {}, description="OpenAI-compatible servers: each makes `name:…` available"
    )
    routes: dict[_RouteName, _Route] = Field(
        {}, description="names for lists of models: the first that can answer does"
    )
    upstreams: dict[_ProviderName, UpstreamSettings] = Field(
        {}, description="limits of providers: `max_concurrent`, `requests_per_minute`"
    )
    max_calls: int = Field(1_000, ge=1, le=100_000, description="of outside callers at once, in one process")
    timeout_seconds: float = Field(120.0, gt=0, le=3600, description="of one call")
    max_tokens: int = Field(DEFAULT_MAX_TOKENS, ge=100, le=200_000, description="of one reply, at least")
    temperature: float | None = Field(None, ge=0, le=2, description="the provider's own by default")


class ConversationSettings(_Part):
    """What is said to a model of the earlier turns of a conversation."""

    window_messages: int = Field(40, ge=1, le=1000)
    window_bytes: int = Field(64 * 1024, ge=1024, le=8 * 1024**2)
    summaries: bool = Field(True, description="what leaves the window is summarised by the same model")


class LogSettings(_Part):
    """How this process logs."""

    format: Literal["console", "json"] = "console"
    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(BaseSettings):
    """Everything that an operator sets, by `ASSAY_<PART>__<NAME>`."""

    model_config = SettingsConfigDict(
        env_prefix="ASSAY_", env_nested_delimiter="__", frozen=True, extra="forbid", env_ignore_empty=True
    )

    folder: Path = Path(".assay")
    tenant_id: str = Field("local", description="the tenant of `assay up`")
    postgres: PostgresSettings = PostgresSettings()
    redis: RedisSettings = RedisSettings()
    temporal: TemporalSettings = TemporalSettings()
    objects: ObjectSettings = ObjectSettings()
    api: ApiSettings = ApiSettings()
    worker: WorkerSettings = WorkerSettings()
    models: ModelSettings = ModelSettings()
    conversations: ConversationSettings = ConversationSettings()
    log: LogSettings = LogSettings()

    @property
    def objects_url(self) -> str:
        """Where files are kept."""
        return self.objects.url or f"file://{self.folder.resolve() / 'objects'}"
