"""Conformance suites that others made, all cases of them but those that name what this server refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import MODEL, Run
from tests.cluster.harness import Cluster

PATIENCE = "600"  # seconds for one request


# Images are refused by name (tests/server/api); with them, what is left out here is one case each.
@pytest.mark.parametrize(
    ("form", "images"),
    [
        ("openai-chat", "chat-image-input"),
        ("open-responses", "image-input"),
        ("anthropic", "anth-image-input"),
    ],
)
def test_llm_comply(run: Run, cluster: Cluster, form: str, images: str) -> None:
    target = ("-u", f"{cluster.url}/v1", "-k", "none", "-m", MODEL, "--format", form)
    listed = run("llm-comply", "--format", form, "--list").stdout
    cases = [
        line.split()[0] for line in listed.splitlines() if line[:2] == "  " and line[2:3].strip()
    ]
    wanted = [case for case in cases if case != images]
    assert len(wanted) == len(cases) - 1 > 5
    done = run(
        "llm-comply", *target, "--timeout", PATIENCE, "--json", "-f", ",".join(wanted), ok=(0, 1)
    )
    failed = [case for case in json.loads(done.stdout)["results"] if case["status"] == "failed"]
    assert not failed, json.dumps(failed, indent=1)


# What depends on the model wanting to call: the demo model was not trained to.
UP_TO_THE_MODEL = {
    "single-call",
    "parallel-calls",
    "nested-args",
    "unicode-args",
    "empty-args",
    "reasoning-then-call",
}


def test_canitoolcall(run: Run, cluster: Cluster, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    target = ("--base-url", f"{cluster.url}/v1", "--model", MODEL)
    bounds = ("--timeout", PATIENCE, "--concurrency", "2")
    done = run("canitoolcall", "probe", *target, *bounds, "--json", str(report), ok=(0, 1))
    outcomes: list[dict[str, Any]] = json.loads(report.read_text())["outcomes"]
    assert not [each for each in outcomes if each["status"] == "error"], done.stdout
    # Whatever the model says, a stream says the same; and what does not depend on it passes.
    held = [
        each
        for each in outcomes
        if each["check"] != "scenario" or each["scenario_id"] not in UP_TO_THE_MODEL
    ]
    assert len(held) >= 15
    assert not [each for each in held if each["status"] != "pass"], done.stdout


# Fields that make an answer long, and the values that are tried of them.
BOUNDED = {
    "ChatBody": "max_completion_tokens",
    "CompletionBody": "max_tokens",
    "ResponsesBody": "max_output_tokens",
    "MessagesBody": "max_tokens",
}
BODIES = (*BOUNDED, "CountBody", "TokenizeBody", "DetokenizeBody")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)


def test_schemathesis(run: Run, cluster: Cluster, tmp_path: Path) -> None:
    document = cluster.http.get("/openapi.json").json()
    # A feed without an end, and what waits for seconds that are asked for.
    for path in ("/v1/cluster/events", "/v1/cluster/timeline", "/v1/cluster/logs"):
        del document["paths"][path]
    for name in BODIES:
        schema = document["components"]["schemas"][name]
        schema["properties"]["model"] = {"const": MODEL}
        schema["required"] = sorted({*schema.get("required", []), "model"})
        if name in BOUNDED:
            schema["properties"][BOUNDED[name]] = {"enum": [1, 2, 3]}
            schema["required"].append(BOUNDED[name])
        for several in {"n", "best_of"} & set(schema["properties"]):
            schema["properties"][several] = {"enum": [1, 2, None]}
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))
    run(
        "schemathesis", "run", str(file), "--url", cluster.url,
        "--checks", ",".join(CHECKS), "--phases", "coverage,fuzzing",
        "--max-examples", "10", "--max-time", "420", "--request-timeout", "300", "--seed", "1",
        "--generation-database", "none",
    )  # fmt: skip
    assert cluster.http.get("/health").status_code == 200
