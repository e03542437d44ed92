"""What a request says about its output becomes a constraint, or a refusal that names the field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.errors import ConstraintRefused
from pipeline.request import Constraint
from server.api.service import Service
from server.api.tools.schemas import MAX_STATES, most_states
from tests.server.api.conftest import Client, events
from tests.server.api.fakes import END, TOKENIZER, FakeEngine, Script, ids

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def json_format(schema: Any, **more: Any) -> dict[str, Any]:
    named = {"name": "it", "schema": schema, **more}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def only_constraint(engine: FakeEngine) -> Constraint:
    [request] = engine.requests
    assert request.params.constraint is not None
    return request.params.constraint


def accepts(service: Service, constraint: Constraint, text: str) -> bool:
    """Whether `text` is a whole output."""
    assert service.model is not None
    matcher = service.model.grammars.matcher(constraint)
    tokens = ids(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"guided_json": SCHEMA}, ['{"a": 1}', '{\n  "a": 1\n}'], ["{}", '{"a": 1.5}', "[1]"]),
    ({"guided_json": json.dumps(SCHEMA)}, ['{"a": 1}'], ["{}"]),
    ({"guided_regex": "[ab]{2}"}, ["ab", "bb"], ["abc", "a"]),
    ({"guided_choice": ["yes", 'n"o\n\\']}, ["yes", 'n"o\n\\'], ["no", "ye"]),
    ({"guided_grammar": 'start: "a" b\nb: /[0-9]+/'}, ["a12"], ["a", "b1"]),
    ({"structured_outputs": {"json": SCHEMA}}, ['{"a": 1}'], ["{}"]),
    ({"structured_outputs": {"regex": "a+"}}, ["aa"], ["b"]),
    ({"structured_outputs": {"choice": ["x"]}}, ["x"], ["y"]),
    ({"structured_outputs": {"grammar": 'start: "q"'}}, ["q"], ["r"]),
    ({"structured_outputs": {"json_object": True}}, ["{}"], ["[]"]),
]
CHAT_CASES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"response_format": {"type": "json_object"}}, ['{"x": [1, null]}'], ["[1]", "1"]),
    (json_format(SCHEMA, strict=True), ['{"a": 1}'], ["{}"]),
    (json_format(SCHEMA), ['{"a": 1}'], ["{}"]),
    (json_format({**SCHEMA, "not": {"required": ["b"]}}), ['{"a": 1}'], ["{}"]),
    (json_format(None), ["{}"], ["[]"]),
]


@pytest.mark.parametrize(("fields", "good", "bad"), CASES + CHAT_CASES, ids=repr)
def test_chat(
    client: Client,
    service: Service,
    engine: FakeEngine,
    fields: dict[str, Any],
    good: list[str],
    bad: list[str],
) -> None:
    assert client.chat(**fields).status_code == 200
    constraint = only_constraint(engine)
    assert constraint.ends == (TOKENIZER.convert_tokens_to_ids(END),)
    assert [accepts(service, constraint, text) for text in good] == [True] * len(good)
    assert [accepts(service, constraint, text) for text in bad] == [False] * len(bad)


@pytest.mark.parametrize(("fields", "good", "bad"), CASES, ids=repr)
def test_completions(
    client: Client,
    service: Service,
    engine: FakeEngine,
    fields: dict[str, Any],
    good: list[str],
    bad: list[str],
) -> None:
    assert client.complete(**fields).status_code == 200
    assert accepts(service, only_constraint(engine), good[0])


def test_what_a_strict_schema_can_not_enforce_is_refused(
    client: Client, engine: FakeEngine
) -> None:
    response = client.chat(**json_format({**SCHEMA, "not": {}}, strict=True))
    error = response.json()["error"]
    assert (response.status_code, error["type"]) == (400, "invalid_request_error")
    assert error["param"] == "response_format.json_schema.schema"
    assert "not" in error["message"]
    assert not engine.requests


def test_options_of_the_grammar_library_are_not_the_clients_to_set(
    client: Client, service: Service, engine: FakeEngine
) -> None:
    options = {"lenient": True, "whitespace_pattern": "x"}
    schema = {**SCHEMA, "x-guidance": options, "not": {}}
    assert client.chat(guided_json=schema).status_code == 400


@pytest.mark.parametrize("depth", [40, 150])
def test_a_deep_schema_is_refused(client: Client, engine: FakeEngine, depth: int) -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    for fields in ({"guided_json": schema}, {"guided_json": json.dumps(schema)}):
        response = client.chat(**fields)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "guided_json"


def test_free_requests_have_no_constraint(client: Client, engine: FakeEngine) -> None:
    assert client.chat(response_format={"type": "text"}).status_code == 200
    assert engine.requests[0].params.constraint is None


def test_a_constraint_that_fails_later_is_the_requests_error(
    client: Client, engine: FakeEngine
) -> None:
    engine.script = Script(error=ConstraintRefused("The output can't follow the constraint: x."))
    response = client.chat(guided_regex="a+")
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "constraint_failed"
    engine.script = Script(ids("h"), error=ConstraintRefused("no"))
    *_, last = events(client.chat(guided_regex="a+", stream=True))
    assert last["error"]["code"] == "constraint_failed"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "multipleOf": 99_999_989},
        {"type": "number", "multipleOf": 0.123456789},
        {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (97, 89, 83)]},
        {"multipleOf": 7, "anyOf": [{"type": "number", "multipleOf": 1e-8}]},
    ],
)
@pytest.mark.parametrize("form", ["response_format", "guided_json", "guided_grammar"])
def test_a_number_with_more_remainders_than_can_be_compiled_is_refused(
    client: Client, schema: dict[str, Any], form: str
) -> None:
    """Each is a state of an automaton: a hundred million would keep rank 0 busy for hours."""
    forms = {
        "response_format": json_format(schema),
        "guided_json": {"guided_json": schema},
        "guided_grammar": {"guided_grammar": f"start: %json\n{json.dumps(schema)}\n"},
    }
    answer = client.chat(**forms[form])
    assert answer.status_code == 400
    assert "multipleOf" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"].startswith(form)


def test_what_follows_json_in_a_grammar_is_json(client: Client) -> None:
    answer = client.complete(guided_grammar='start: %json // {"a": 1}\n{}')
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "guided_grammar")


@pytest.mark.parametrize("step", [1, 0.01, 2.5, 1000, 9973])
def test_usual_steps_are_followed(step: float) -> None:
    assert 0 < most_states({"properties": {"a": {"multipleOf": step}}}) <= MAX_STATES
