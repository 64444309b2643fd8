"""Logs of three invented systems, with the template of every line: no one's parameters were chosen by them.

An updater of vehicles, a queue in logfmt and a cluster's agent. Each template is a format; what it takes is
drawn from many values, or from a few that a reader would want told apart, which are templates of their own.
"""

import random
import string
from collections.abc import Callable, Sequence

Draw = Callable[[random.Random], str]


def _number(low: int, high: int) -> Draw:
    return lambda drawn: str(drawn.randint(low, high))


def _decimal(high: float, digits: int = 2) -> Draw:
    return lambda drawn: f"{drawn.uniform(0, high):.{digits}f}"


def _hex(digits: int) -> Draw:
    return lambda drawn: "".join(drawn.choices("0123456789abcdef", k=digits))


def _address(drawn: random.Random) -> str:
    return ".".join(str(drawn.randint(1, 254)) for _ in range(4))


def _uuid(drawn: random.Random) -> str:
    return "-".join(_hex(digits)(drawn) for digits in (8, 4, 4, 4, 12))


def _path(drawn: random.Random) -> str:
    names = ["var", "lib", "ota", "slots", "cache", "images", "tmp"]
    return "/" + "/".join(drawn.sample(names, 3)) + f"/{_hex(6)(drawn)}.img"


def _name(drawn: random.Random) -> str:
    return "".join(drawn.choices(string.ascii_lowercase, k=drawn.randint(4, 9)))


def _pod(drawn: random.Random) -> str:
    kind = drawn.choice(["checkout", "payments", "search", "frontend", "mailer", "reports"])
    return f"{kind}-{_hex(10)(drawn)}-{_hex(5)(drawn)}"


_DRAWS: dict[str, Draw] = {
    "n": _number(0, 99_999),
    "pct": _number(0, 100),
    "s": _decimal(90),
    "v": _decimal(14),
    "hex": lambda drawn: f"0x{_hex(8)(drawn)}",
    "sha": _hex(40),
    "ip": _address,
    "uuid": _uuid,
    "path": _path,
    "name": _name,
    "pod": _pod,
}

_VEHICLE = (
    "campaign {uuid} offered, {n} bytes in {n} chunks",
    "download of chunk {n} of {n} started from {ip}:443",
    "download of chunk {n} of {n} completed in {s} s",
    "download of chunk {n} failed: connection reset by peer",
    "download of chunk {n} failed: timeout after {s} s",
    "digest of {path} is {sha}",
    "digest of {path} does not match: expected {sha}, found {sha}",
    "signature of manifest is valid",
    "signature of manifest is not valid: unknown key {hex}",
    "battery {v} V, state of charge {pct}%",
    "battery {v} V is below the threshold of {v} V, installation postponed",
    "slot a is active, slot b is inactive",
    "slot b is active, slot a is inactive",
    "switching slot, boot attempt {n} of {n}",
    "rollback to version {n}.{n}.{n} requested by watchdog",
    "DTC P0562 stored by ECU {hex}",
    "DTC U0100 stored by ECU {hex}",
    "driver {name} accepted the installation",
    "CAN frame {hex} lost, bus load {pct}%",
)
_QUEUE = (
    'component=broker msg="accepted connection" peer={ip}:{n} session={uuid}',
    'component=broker msg="closed connection" peer={ip}:{n} session={uuid} reason=eof',
    'component=broker msg="closed connection" peer={ip}:{n} session={uuid} reason=timeout',
    'component=storage msg="segment flushed" topic={name} offset={n} bytes={n} took={s}ms',
    'component=storage msg="segment deleted" topic={name} offset={n}',
    'component=storage msg="disk usage is {pct} percent" path={path}',
    'component=raft msg="became leader" term={n}',
    'component=raft msg="became follower" term={n} leader={uuid}',
    'component=raft msg="lost quorum" term={n} alive={n}',
    "component=auth user={name} granted=true method=password",
    "component=auth user={name} granted=false method=password",
    "component=auth user={name} granted=false method=certificate",
)
_CLUSTER = (
    "Successfully assigned default/{pod} to node-{n}",
    'Pulling image "registry.local/{name}:{n}.{n}"',
    "Successfully pulled image in {s}s ({s}s including waiting)",
    "Created container {name}",
    "Started container {name}",
    "Back-off restarting failed container {name} in pod {pod}_default({uuid})",
    "Liveness probe failed: Get http://{ip}:8080/healthz: context deadline exceeded",
    "Readiness probe failed: HTTP probe failed with statuscode: {n}",
    "Node node-{n} status is now: NodeNotReady",
    "Node node-{n} status is now: NodeReady",
    "Scaled up replica set {name} to {n} from {n}",
    "Scaled down replica set {name} to {n} from {n}",
    "Memory cgroup out of memory: Killed process {n} ({name}) total-vm:{n}kB, anon-rss:{n}kB",
    "eviction manager: attempting to reclaim memory",
    "eviction manager: must evict pod(s) to reclaim memory",
    "Trace[{n}]: {s}ms ({s}ms) List {path} done",
)

SYSTEMS = {"vehicle updater": _VEHICLE, "queue in logfmt": _QUEUE, "cluster agent": _CLUSTER}


def written_log(templates: Sequence[str], lines: int, seed: int = 1) -> list[tuple[str, str]]:
    """So many lines with the template of each; some templates are far more frequent than others."""
    drawn = random.Random(seed)  # noqa: S311  # lines, not secrets
    weights = [1 / (1 + drawn.randrange(12)) for _ in templates]
    chosen = drawn.choices(templates, weights, k=lines)
    return [(_filled(template, drawn), template) for template in chosen]


def _filled(template: str, drawn: random.Random) -> str:
    parts = template.split("{")
    filled = [parts[0]]
    for part in parts[1:]:
        kind, _, rest = part.partition("}")
        filled += _DRAWS[kind](drawn), rest
    return "".join(filled)
