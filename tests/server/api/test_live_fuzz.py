"""Whatever comes over a real connection gets an answer, and the connection goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.server.api.fakes import FakeEngine, Script, ids, make_service
from tests.server.api.test_fuzz import PATHS, values
from tests.server.api.test_live import DEADLINE_S, serving

FIELDS = ("messages", "prompt", "input", "stream", "max_tokens", "n", "stop", "tools", "logprobs")

bodies = (
    st.binary(max_size=200)
    | values.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(FIELDS), values, max_size=4).map(
        lambda fields: json.dumps({"model": "tiny", **fields}).encode()
    )
)


@pytest.fixture(scope="module")
def connection() -> Iterator[httpx.Client]:
    service = make_service(FakeEngine(Script(ids("hello world"))))
    with serving(service) as (host, port):
        limits = httpx.Limits(max_connections=1)
        url = f"http://{host}:{port}"
        with httpx.Client(base_url=url, limits=limits, timeout=DEADLINE_S) as client:
            yield client
            assert client.get("/v1/models").status_code == 200
    assert service.running == 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(path=st.sampled_from([*PATHS, "/tokenize", "/detokenize", "/v1/embeddings"]), body=bodies)
def test_every_body_is_answered(connection: httpx.Client, path: str, body: bytes) -> None:
    response = connection.post(path, content=body)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error: dict[str, Any] = response.json()["error"]
        assert error["message"]
