"""A front door with TLS on both sides: towards clients its own certificate, towards rank 0 the launcher's."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from server.tls.errors import TlsError
from tests.certificates import ENOUGH, make_folder, tls_of
from tests.launcher.frontdoor.doors import opened
from tests.launcher.frontdoor.rank0 import Rank0
from tests.launcher.frontdoor.test_restart import CHAT, SEEDED, expected, text_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "tls")


def settings(folder: Path) -> list[str]:
    return [
        "tls.gateway.mode=own",
        "tls.cluster.enabled=true",
        f"tls.cluster.folder={folder}",
        "api_gateway.timeout=1",
    ]


async def test_requests_go_to_the_node_that_leads_and_to_no_other(folder: Path) -> None:
    first, second = Rank0(tls=tls_of(folder, "n0")), Rank0(tls=tls_of(folder, "n1"))
    trusting = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    async with opened(*settings(folder)) as door:
        host, port = door.address
        async with httpx.AsyncClient(
            base_url=f"https://{host}:{port}", verify=trusting, timeout=ENOUGH
        ) as client:
            for epoch, rank0 in enumerate((first, second)):
                door.leader_changed(leader := await rank0.start(epoch))
                answer = await client.post(CHAT, json={**SEEDED, "stream": True})
                assert text_of(answer.content) == expected()
                assert (await client.get("/v1/models")).status_code == 200
            door.leader_changed(replace(leader, node="n0", epoch=3))  # but n1 answers there
            assert (await client.post(CHAT, json=SEEDED)).status_code == 503
            assert (await client.get("/v1/models")).status_code == 503
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{host}:{port}/health")
    await first.stop()
    await second.stop()


async def test_a_launcher_without_a_certificate_does_not_start(folder: Path) -> None:
    (folder / "launcher.pem").unlink()
    with pytest.raises(TlsError, match=r"launcher\.pem: can't be read"):
        async with opened(*settings(folder)):
            pass
