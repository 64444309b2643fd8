"""The command line's client of the API: what is refused is never taken for done."""

import asyncio

import pytest

from runtime.client import ApiClient, RequestRefused
from tests.conftest import KEY


async def test_removing_what_is_not_there_is_refused(api_url: str) -> None:
    with (
        ApiClient(api_url, KEY) as client,
        pytest.raises(RequestRefused, match="There is no baseline 'nowhere'"),
    ):
        await asyncio.to_thread(client.delete, "/v1/baselines/nowhere")
