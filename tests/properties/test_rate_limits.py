"""Property 14: who is refused is told a wait that is true, positive and whole in seconds for HTTP."""

import asyncio
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.errors import problem_headers
from db.redis.connection import RedisLink
from db.redis.limits import RedisRateLimits
from domain.errors import RateLimited
from domain.gateway import Permit, RateLimit
