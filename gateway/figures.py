"""The gateway's figures (O8), in the registry that is passed in; steps and loops call its methods."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class GatewayFigures:
    """What the gateway of one process counts; counters are exposed under their name with `_total`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.calls = Counter("gateway_calls", "Calls by how they ended.", ["outcome"], registry=registry)
        self._make_quota_figures(registry)
        self._make_step_figures(registry)

    def _make_quota_figures(self, registry: CollectorRegistry) -> None:
        self.redis_difference = Gauge(
            "quota_redis_db_diff",
            "Greatest amount by which a copy in Redis differed from Postgres when last compared.",
            registry=registry,
        )
        self.copies_repaired = Counter(
            "quota_copies_repaired", "Copies of balances that Redis had wrong.", registry=registry
        )
        self.copies_dropped = Counter(
            "quota_copies_dropped", "Copies given up while Redis was away; repaired later.", registry=registry
        )
        self.sync_lag = Gauge(
            "quota_sync_lag_ms", "How long after its commit a balance was copied to Redis.", registry=registry
        )
        self.orphans = Gauge(
            "billing_orphan_usage_record_count", "Commits without their hold or reply.", registry=registry
        )
        self.warm_races = Counter(
            "cache_warm_race_count", "Copies wanted while they were being made.", registry=registry
        )

    def _make_step_figures(self, registry: CollectorRegistry) -> None:
        self.write_conflicts = Counter(
            "conversation_write_conflict_count", "Turns refused or lost to another turn.", registry=registry
        )
        self.affinity_lookups = Counter(
            "routing_affinity_lookups", "Calls of a session with a preferred upstream.", registry=registry
        )
        self.affinity_hits = Counter(
            "routing_affinity_hits", "Those that the preferred upstream answered.", registry=registry
        )
        self.affinity_stale = Counter(
            "routing_affinity_stale_count",
            "Preferences for an upstream that could not serve.",
            registry=registry,
        )
        self.affinity_hit_rate = Gauge(
            "routing_affinity_hit_rate", "Share of the lookups that were hits.", registry=registry
        )
        self._lookups = self._hits = 0

    # --- calls ---

    def call_ended(self, outcome: str) -> None:
        """A call ended: `ok`, `replayed` or an error's code."""
        self.calls.labels(outcome).inc()

    # --- quotas ---

    def compared(self, difference: int, repaired: int) -> None:
        """Copies were compared with Postgres: the greatest difference, and how many were repaired."""
        self.redis_difference.set(difference)
        self.copies_repaired.inc(repaired)

    def synced(self, lag_seconds: float) -> None:
        """Balances were copied so long after their commit, or wait for so long already."""
        self.sync_lag.set(round(lag_seconds * 1000))

    def dropped(self) -> None:
        """A copy was given up, because too many wait."""
        self.copies_dropped.inc()

    def warm_race(self) -> None:
        """A copy was wanted that somebody else makes already."""
        self.warm_races.inc()

    def orphans_counted(self, count: int) -> None:
        """So many commits have no hold or no reply."""
        self.orphans.set(count)

    # --- conversations and routing ---

    def write_conflict(self) -> None:
        """A turn was refused, or lost to another one."""
        self.write_conflicts.inc()

    def affinity(self, *, hit: bool) -> None:
        """A session had a preference; whether that upstream answered."""
        self._lookups += 1
        self._hits += hit
        self.affinity_lookups.inc()
        self.affinity_hits.inc(hit)
        self.affinity_hit_rate.set(self._hits / self._lookups)

    def affinity_was_stale(self) -> None:
        """A session preferred an upstream that is gone, excluded or cooling down."""
        self.affinity_stale.inc()
