"""Refuse installed distributions that own one of our top-level package names.

Our packages are flat (`api`, `db`, …): a distribution with a module of the same name would shadow ours, or
ours would break it.
"""

import sys
from collections.abc import Mapping
from importlib.metadata import packages_distributions

OURS = (
    "activities",
    "agents",
    "api",
    "benchmarks",
    "db",
    "domain",
    "gateway",
    "runtime",
    "workflows",
)


def intruders(owners: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The distributions other than ours that own one of our names, by that name."""
    others = {name: sorted(set(owners.get(name, ())) - {"assay"}) for name in OURS}
    return {name: distributions for name, distributions in others.items() if distributions}


def main() -> int:
    """Say every intruder; the exit code tells whether there is one."""
    found = intruders(packages_distributions())
    for name, distributions in found.items():
        sys.stderr.write(
            f"The installed distribution {', '.join(distributions)} owns the package name `{name}`, which is "
            "ours: remove it from the environment and from the lock.\n"
        )
    return bool(found)


if __name__ == "__main__":
    raise SystemExit(main())
