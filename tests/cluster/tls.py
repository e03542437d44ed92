"""Clusters with certificates."""

from __future__ import annotations

import ssl
import subprocess
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from server.tls.identity import node
from tests.certificates import make_folder
from tests.cluster.harness import (
    ANSWER_DEADLINE,
    HOST,
    ROOT,
    Cluster,
    Ports,
    Spec,
    environment,
    folder_model,
)


class TlsCluster(Cluster):
    """TLS everywhere, the hidden states included if `tensors`."""

    def __init__(
        self, spec: Spec, folder: Path, ports: Ports | None = None, tensors: bool = False
    ) -> None:
        self.certificates = make_folder(folder / "tls", [f"n{rank}" for rank in range(spec.ranks)])
        settings = [
            "tls.gateway.mode=own",
            "tls.cluster.enabled=true",
            f"tls.cluster.folder={self.certificates}",
            f"tls.tensors={str(tensors).lower()}",
        ]
        super().__init__(replace(spec, settings=[*spec.settings, *settings]), folder, ports)

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.ports.gateway}"

    @cached_property
    def trusting(self) -> ssl.SSLContext:
        """Of a client without a certificate."""
        return ssl.create_default_context(cafile=str(self.certificates / "ca.pem"))

    @cached_property
    def reader(self) -> ssl.SSLContext:
        """Of a client that may read the ports of nodes."""
        context = ssl.create_default_context(cafile=str(self.certificates / "ca.pem"))
        context.load_cert_chain(self.certificates / "reader.pem", self.certificates / "reader.key")
        return context

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=ANSWER_DEADLINE, verify=self.trusting)

    def health(self, rank: int) -> dict[str, Any]:
        answer = self.ask_node(rank, "GET", 2, "/health")
        answer.raise_for_status()
        body: dict[str, Any] = answer.json()
        return body

    def ask_node(self, rank: int, method: str, port: int, path: str, **body: Any) -> httpx.Response:
        """Ask port 0 (inference) or 2 (health) of a node, with a certificate."""
        address = f"https://{HOST}:{self.ports.nodes[rank][port]}{path}"
        with httpx.Client(verify=self.reader, timeout=ANSWER_DEADLINE) as client:
            name = node(f"n{rank}").dns_name
            return client.request(method, address, extensions={"sni_hostname": name}, **body)


def two_ranks(model: Path) -> Spec:
    """Two ranks that compute each prompt anew, in the same pieces."""
    settings = ["scheduler.prefix_cache_tokens=0", "scheduler.prefill_chunk_tokens=512"]
    return Spec(ranks=2, models=folder_model(model), settings=settings)


class SupervisedTlsCluster(TlsCluster):
    """The same under the launcher, whose front door is the gateway."""

    def _command(self) -> list[str]:
        words = ["-m", "launcher", *self.place_arguments()]
        words += ["--starting-port", str(self.ports.ring[0])]
        words += ["--config", str(self.folder / "config")]
        for setting in (*self.spec.settings, "launcher.log_folder=none"):
            words += ["--set", setting]
        return [sys.executable, *words]

    def command(self, *words: str) -> str:
        """What `python -m launcher WORDS` prints."""
        asked = [sys.executable, "-m", "launcher", *words, "--config", str(self.folder / "config")]
        for setting in self.spec.settings:
            asked += ["--set", setting]
        done = subprocess.run(
            asked,
            cwd=ROOT,
            env=environment(self.spec.env),
            capture_output=True,
            text=True,
            timeout=ANSWER_DEADLINE,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
