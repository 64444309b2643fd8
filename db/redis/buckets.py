"""The arithmetic of rate limits, in whole numbers: once as a script for Redis, once for a process alone.

A bucket's level is counted in 60,000ths of its unit, so that each millisecond adds `capacity` of them and
nothing is ever rounded; both sides agree to the last bit. A level may fall below zero: what a call used
beyond its estimate is paid back first.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

MINUTE = 60_000
#: nobody knows when a call under way ends: whoever waits for its place looks again after so long
POLL_MILLISECONDS = 1_000
#: more buckets than a process has tenants under way; the longest unused one begins full again
BUCKETS_KEPT = 10_000

# Both scripts get `now` in milliseconds before them: the server's own, so that no two clocks differ.
SERVER_TIME = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
_LEVEL = """
local function filled(key, capacity)
    local known = redis.call('HMGET', key, 'level', 'at')
    local full = capacity * 60000
    if not known[1] then return full, full end
    return math.min(full, tonumber(known[1]) + math.max(0, now - tonumber(known[2])) * capacity), full
end
local function keep(key, capacity, level, full)
    redis.call('HSET', key, 'level', string.format('%.0f', level), 'at', string.format('%.0f', now))
    redis.call('PEXPIRE', key, math.ceil((full - level) / capacity) + 1000)
end
"""
# KEYS: the permit, then a key for each limit. ARGV: the permit's id, what is taken of each limit as `written`
# (the driver takes as long for an argument as for all of them in one), and the permit's lease. Answers whether
# it was granted, and for each limit what is left, when it is whole, and how long to wait for it.
ACQUIRE = (
    _LEVEL
    + """
local shares, lease, granted, levels, answer = cjson.decode(ARGV[2]), tonumber(ARGV[3]), 1, {}, {}
for i = 2, #KEYS do
    local key, unit, capacity, cost = KEYS[i], unpack(shares[i - 1])
    local left, reset, wait = 0, 0, 0
    if unit == 'calls' then
        redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
        local taken = redis.call('ZCARD', key)
        left = capacity - taken
        if left < cost then
            local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')[2]
            wait = math.min(1000, tonumber(first) - now)
        end
        if taken > 0 then reset = 1000 end
    else
        local level, full = filled(key, capacity)
        levels[i] = {level - cost * 60000, full}
        left = math.floor(level / 60000)
        reset = math.ceil((full - level) / capacity)
        if level < cost * 60000 then wait = math.ceil((cost * 60000 - level) / capacity) end
    end
    if wait > 0 then granted = 0 end
    answer[i - 1] = {left, reset, wait}
end
if granted == 0 then return {0, answer} end
for i = 2, #KEYS do
    local key, _, capacity, cost = KEYS[i], unpack(shares[i - 1])
    if levels[i] then
        local level, full = levels[i][1], levels[i][2]
        keep(key, capacity, level, full)
        answer[i - 1] = {math.floor(level / 60000), math.ceil((full - level) / capacity), 0}
    else
        redis.call('ZADD', key, now + lease, ARGV[1])
        redis.call('PEXPIREAT', key, redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2])
        answer[i - 1] = {answer[i - 1][1] - cost, 1000, 0}
    end
end
redis.call('SET', KEYS[1], 1, 'PX', lease)
return {1, answer}
"""
)
# KEYS and ARGV as above, without a lease: what is given back to each limit.
RELEASE = (
    _LEVEL
    + """
if redis.call('DEL', KEYS[1]) == 0 then return 0 end
local shares = cjson.decode(ARGV[2])
for i = 2, #KEYS do
    local key, unit, capacity, back = KEYS[i], unpack(shares[i - 1])
    if unit == 'calls' then
        redis.call('ZREM', key, ARGV[1])
    elseif back ~= 0 then
        local level, full = filled(key, capacity)
        keep(key, capacity, math.min(full, level + back * 60000), full)
    end
end
return 1
"""
)
# KEYS: the permit, then a key for each limit of calls at once. ARGV: the permit's id and its lease. What a
# server that was emptied or restarted has forgotten is there again.
RENEW = """
local lease = tonumber(ARGV[2])
for i = 2, #KEYS do
    redis.call('ZADD', KEYS[i], now + lease, ARGV[1])
    redis.call('PEXPIREAT', KEYS[i], redis.call('ZRANGE', KEYS[i], -1, -1, 'WITHSCORES')[2])
end
redis.call('SET', KEYS[1], 1, 'PX', lease)
"""


class Share(NamedTuple):
    """What is taken of one limit, or given back to it."""

    key: str
    unit: Literal["requests", "tokens", "calls"]
    capacity: int
    amount: int


def written(shares: Sequence[Share]) -> str:
    """The shares as the scripts read them."""
    return json.dumps([each[1:] for each in shares])


class Verdict(NamedTuple):
    """How one limit stands; the wait is 0 where it lets the call pass, all times in milliseconds."""

    left: int
    reset: int
    wait: int


@dataclass
class _Bucket:
    level: int
    at: int


@dataclass
class Buckets:
    """The limits of one process alone, by the same arithmetic as the scripts; a bounded number of them."""

    most: int = BUCKETS_KEPT
    _levels: OrderedDict[str, _Bucket] = field(default_factory=OrderedDict)
    _places: OrderedDict[str, dict[str, int]] = field(default_factory=OrderedDict)
    _permits: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def acquire(
        self, permit: str, shares: Sequence[Share], lease: int, now: int
    ) -> tuple[bool, list[Verdict]]:
        """Take all of them, or none; answers whether it did, and how each limit stands then."""
        verdicts = [self._verdict(each, now) for each in shares]
        if any(each.wait for each in verdicts):
            return False, verdicts
        self._permits[permit] = None
        _bound(self._permits, self.most)
        return True, [self._take(each, permit, lease, now) for each in shares]

    def release(self, permit: str, shares: Sequence[Share], now: int) -> bool:
        """Give back what the permit took; answers whether it was there to be given back."""
        if permit not in self._permits:
            return False
        del self._permits[permit]
        for share in shares:
            if share.unit == "calls":
                self._places.get(share.key, {}).pop(permit, None)
            elif share.amount:
                level = self._filled(share, now) + share.amount * MINUTE
                self._keep(share, min(share.capacity * MINUTE, level), now)
        return True

    def renew(self, permit: str, shares: Sequence[Share], lease: int, now: int) -> None:
        """Let the permit's places last so long from now on."""
        for share in shares:
            if share.unit == "calls":
                self._places.setdefault(share.key, {})[permit] = now + lease
                _bound(self._places, self.most)

    def _verdict(self, share: Share, now: int) -> Verdict:
        if share.unit == "calls":
            places = self._swept(share.key, now)
            full = share.capacity - len(places) < share.amount
            wait = min(POLL_MILLISECONDS, min(places.values(), default=now) - now) if full else 0
            return Verdict(share.capacity - len(places), POLL_MILLISECONDS if places else 0, wait)
        level = self._filled(share, now)
        return _standing(share, level)._replace(wait=max(0, _time(share.amount * MINUTE - level, share)))

    def _take(self, share: Share, permit: str, lease: int, now: int) -> Verdict:
        if share.unit == "calls":
            places = self._places.setdefault(share.key, {})
            places[permit] = now + lease
            _bound(self._places, self.most)
            return Verdict(share.capacity - len(places), POLL_MILLISECONDS, 0)
        level = self._filled(share, now) - share.amount * MINUTE
        self._keep(share, level, now)
        return _standing(share, level)

    def _swept(self, key: str, now: int) -> dict[str, int]:
        if key not in self._places:
            return {}
        self._places.move_to_end(key)
        self._places[key] = {permit: end for permit, end in self._places[key].items() if end > now}
        return self._places[key]

    def _filled(self, share: Share, now: int) -> int:
        full = share.capacity * MINUTE
        if (bucket := self._levels.get(share.key)) is None:
            return full
        return min(full, bucket.level + max(0, now - bucket.at) * share.capacity)

    def _keep(self, share: Share, level: int, now: int) -> None:
        self._levels[share.key] = _Bucket(level, now)
        self._levels.move_to_end(share.key)
        _bound(self._levels, self.most)


def _standing(share: Share, level: int) -> Verdict:
    return Verdict(level // MINUTE, _time(share.capacity * MINUTE - level, share), 0)


def _time(amount: int, share: Share) -> int:
    """In how many milliseconds the bucket gains so much, rounded up."""
    return -(-amount // share.capacity)


def _bound(kept: OrderedDict[str, Any], most: int) -> None:
    if len(kept) > most:
        kept.popitem(last=False)
