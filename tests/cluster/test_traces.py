"""Spans of one request from all ranks, as an OpenTelemetry collector gets them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.cluster.conftest import Start
from tests.cluster.harness import HOST, Spec, wait_until
from tests.cluster.tiny import make_folder

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer((HOST, 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server.server_port}"

    def take(self, message: Any) -> None:
        for of_process in message.resource_spans:
            process = attributes(of_process.resource)
            for scope in of_process.scope_spans:
                self.spans += [
                    {
                        "name": span.name,
                        "trace": span.trace_id.hex(),
                        "id": span.span_id.hex(),
                        "parent": span.parent_span_id.hex(),
                        "rank": process["mlxc.rank"],
                        "start": span.start_time_unix_nano,
                        "end": span.end_time_unix_nano,
                        **attributes(span),
                    }
                    for span in scope.spans
                ]


def attributes(holder: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in holder.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


def test_a_request_is_traced_through_all_stages(
    start: Start, tmp_path: Path, collector: Collector
) -> None:
    model = make_folder(tmp_path / "model", "llama")
    settings = (f"observe.otlp_endpoint={collector.url}", "scheduler.prefill_chunk_tokens=16")
    cluster = start(Spec(ranks=2, arguments=("--model", str(model)), settings=settings))
    cluster.wait_ready()
    headers = {"x-request-id": "traced", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    body = cluster.body([n % 90 for n in range(40)], 6)
    assert cluster.http.post("/v1/completions", json=body, headers=headers).is_success
    unsampled = {"x-request-id": "not-traced", "traceparent": f"00-{TRACE}-{PARENT}-00"}
    assert cluster.http.post("/v1/completions", json=body, headers=unsampled).is_success
    wait_until(lambda: cluster.sequences() == [0, 0], "all sequences have been released")
    cluster.stop()

    spans = [span for span in collector.spans if span["trace"] == TRACE]
    [whole] = [span for span in spans if span["name"] == "generate"]
    assert whole["parent"] == PARENT
    assert (whole["mlxc.request_id"], whole["mlxc.finish_reason"]) == ("traced", "length")
    assert (whole["gen_ai.usage.input_tokens"], whole["gen_ai.usage.output_tokens"]) == (40, 6)
    parts = {span["name"]: span for span in spans if span["parent"] == whole["id"]}
    assert parts.keys() == {"queue", "prefill", "decode", "stage.prefill", "stage.decode"}
    assert whole["start"] == parts["queue"]["start"] <= parts["queue"]["end"]
    assert parts["queue"]["end"] == parts["prefill"]["start"] < parts["prefill"]["end"]
    assert parts["prefill"]["end"] == parts["decode"]["start"] < parts["decode"]["end"]
    assert parts["decode"]["end"] <= whole["end"]
    for rank in range(2):
        mine = [span for span in spans if span["rank"] == rank and "stage" in span["name"]]
        assert {span["mlxc.request_id"] for span in mine} == {"traced"}
        chunks = [span["mlxc.tokens"] for span in mine if span["name"] == "stage.prefill"]
        assert sum(chunks) == 39  # the last token of a prompt is fed by the first decode step
        assert len(chunks) == 3
        [decode] = [span for span in mine if span["name"] == "stage.decode"]
        assert decode["mlxc.steps"] == 6
        assert 0 < decode["mlxc.busy_s"] < (decode["end"] - decode["start"]) / 1e9 + 1e-6
