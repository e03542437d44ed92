"""Templates that are right, wrong, endless, huge and hostile."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import psutil
import pytest
from jinja2 import TemplateError, TemplateSyntaxError

from server.templating.bound import bind_template
from server.templating.renderer import SPARE, RenderingFailed, RenderLimits, TemplateRenderer
from tests.server.api.fakes import CHAT_TEMPLATE, ids, make_tokenizer

LIMITS = RenderLimits(seconds=60.0, characters=10_000, processes=1)
HELLO = [{"role": "user", "content": "Hello"}]

NINE = "{% set n = messages | length + 8 %}"  # what is constant would be computed when compiling

HOSTILE = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a': 1}) }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.getcwd() }}",
    "{{ namespace(__class__=1) }}",
)
HUGE = (
    "{{ 'x' * 20000 }}",
    "{% for i in range(99999) %}{{ i }}{% endfor %}",
    "{{ 'x' * 20000000000 }}",
    "{{ '%099999999999d' % 1 }}",
)
MISTAKEN = (
    "{{ raise_exception('no such talk') }}",
    "{{ 1 // 0 }}",
    "{{ messages[7].content }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
)
ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "one operation": NINE
    + "{{ (n ** (n ** 8)) % 7 }}",  # inside of C, where no other thread gets through
}
CASES = (*HOSTILE, *HUGE, *MISTAKEN, *ENDLESS.values())
ANY_OF_THEM = (
    "{% if case is not defined %}fine{{ bos_token }}"
    + "".join(f"{{% elif case == {n} %}}{text}" for n, text in enumerate(CASES))
    + "{% endif %}"
)


def make(template: object, limits: RenderLimits = LIMITS) -> TemplateRenderer:
    return TemplateRenderer(template, {"bos_token": "<s>"}, limits)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def renderer() -> Iterator[TemplateRenderer]:
    """One process for all that leave it whole."""
    under_test = make(ANY_OF_THEM)
    assert under_test.render(HELLO) == "fine<s>"
    yield under_test
    under_test.close()


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_what_it_renders_is_what_transformers_renders() -> None:
    before = children()
    bound, free = make_tokenizer(CHAT_TEMPLATE), make_tokenizer(CHAT_TEMPLATE)
    bind_template(bound)
    talk = [
        {"role": "system", "content": "Be é 🎈 \ud800 kind."},
        {"role": "user", "content": "hello world", "name": None},
    ]
    for options in ({}, {"shout": True}, {"add_generation_prompt": True}):
        expected = free.apply_chat_template(talk, tokenize=False, **options)
        assert bound.apply_chat_template(talk, tokenize=False, **options) == expected
    assert bound.apply_chat_template(HELLO) == ids("<|user|>Hello</s>")
    assert children() - before
    del bound
    gc.collect()
    assert not children() - before  # no process is left


def test_several_templates_and_tools() -> None:
    several = make(
        {
            "default": "{{ messages[0].content }}",
            "tool_use": "{{ tools[0].function.name }}{{ bos_token }}",
        },
        replace(LIMITS, characters=3_000_000),
    )
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    assert several.render(HELLO, tools=[tool]) == "look<s>"
    long = "é" * 1_000_000  # more than a pipe holds, both ways
    assert several.render([{"role": "user", "content": long}]) == long
    several.close()


@pytest.mark.parametrize("template", [*HOSTILE, *HUGE, *MISTAKEN])
def test_what_is_refused_leaves_the_process_as_it_was(
    renderer: TemplateRenderer, template: str
) -> None:
    before = children()
    with pytest.raises(TemplateError) as refusal:
        renderer.render(HELLO, case=CASES.index(template))
    assert not isinstance(refusal.value, RenderingFailed)
    assert renderer.render(HELLO) == "fine<s>"
    assert children() == before


def test_reasons_are_told(renderer: TemplateRenderer) -> None:
    with pytest.raises(TemplateError, match="no such talk"):
        renderer.render(HELLO, case=CASES.index(MISTAKEN[0]))
    with pytest.raises(TemplateError, match="more than 10000 characters"):
        renderer.render(HELLO, case=CASES.index(HUGE[0]))


def test_what_is_no_template() -> None:
    with pytest.raises(TemplateSyntaxError) as error:
        make("\n{% if %}").render(HELLO)
    assert error.value.lineno == 2


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_template_ends(name: str) -> None:
    endless = make(ANY_OF_THEM, replace(LIMITS, seconds=1.0))
    with pytest.raises(RenderingFailed, match="takes too long"):
        endless.render(HELLO, case=CASES.index(ENDLESS[name]))
    assert endless.render(HELLO) == "fine<s>"  # in a process that is new
    endless.close()


def test_one_that_hangs_does_not_hold_up_others() -> None:
    before = children()
    pair = make(ANY_OF_THEM, replace(LIMITS, processes=2))
    outcome: list[RenderingFailed] = []

    def hang() -> None:
        try:
            pair.render(HELLO, case=CASES.index(ENDLESS["loops"]))
        except RenderingFailed as error:
            outcome.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    while not (busy := children() - before):
        time.sleep(0.001)
    assert pair.render(HELLO) == "fine<s>"
    assert not outcome  # the other one still hangs
    os.kill(busy.pop(), 9)
    thread.join(60)
    assert "broke its process" in str(outcome[0])
    pair.close()


def test_more_than_there_are_processes_wait_and_are_told() -> None:
    busy = make(ANY_OF_THEM, replace(LIMITS, wait_seconds=0.01))
    held = busy._idle.get()
    with pytest.raises(RenderingFailed, match="other conversations"):
        busy.render(HELLO)
    busy._idle.put(held)


def test_secrets_of_the_environment_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-token")
    before = children()
    fresh = make(ANY_OF_THEM)
    fresh.render(HELLO)
    (pid,) = children() - before
    environment = psutil.Process(pid).environ()
    assert "HF_TOKEN" not in environment
    assert "PATH" in environment
    fresh.close()


@pytest.mark.parametrize("killed", [False, True])
def test_a_process_that_was_started_beforehand_is_the_first_one(killed: bool) -> None:
    """Unless it has ended meanwhile."""
    before = {process.pid for process in psutil.Process().children()}
    SPARE.start()
    SPARE.start()
    [spare] = [process for process in psutil.Process().children() if process.pid not in before]
    if killed:
        spare.kill()
        spare.wait()
    renderer = TemplateRenderer(CHAT_TEMPLATE, {}, LIMITS)
    assert renderer.render(HELLO)
    SPARE.drop()  # there is none any more
    after = {process.pid for process in psutil.Process().children()} - before
    assert (after == {spare.pid}) is not killed
    assert len(after) == 1
    renderer.close()


def test_a_process_that_is_not_needed_after_all_ends() -> None:
    before = {process.pid for process in psutil.Process().children()}
    SPARE.start()
    SPARE.drop()
    assert {process.pid for process in psutil.Process().children()} == before
