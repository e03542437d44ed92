"""What can be asked of the launcher on its command line; each command is a module of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """`run` takes the arguments after the command's name and returns the exit status."""

    run: Callable[[Sequence[str]], int]
    summary: str


def _doctor(arguments: Sequence[str]) -> int:
    from launcher.doctor.__main__ import main

    return main(list(arguments))


def _ask(name: str) -> Callable[[Sequence[str]], int]:
    def run(arguments: Sequence[str]) -> int:
        from launcher.commands import ask

        return ask.run(name, arguments)

    return run


def _plan(arguments: Sequence[str]) -> int:
    from launcher.commands import plan

    return plan.run(arguments)


def _top(arguments: Sequence[str]) -> int:
    from launcher.commands import top

    return top.run(arguments)


# Imported when they are used: `python -m launcher` itself starts without them.
COMMANDS: dict[str, Command] = {
    "status": Command(_ask("status"), "show nodes, ranks, layers and recoveries"),
    "drain": Command(_ask("drain"), "take no new requests; running ones end"),
    "undrain": Command(_ask("undrain"), "take requests again"),
    "lead": Command(_ask("lead"), "let a node lead, or `auto`"),
    "restart": Command(_ask("restart"), "start again over all nodes that can take part"),
    "top": Command(_top, "show nodes, load and requests until q is pressed"),
    "plan": Command(_plan, "show who would lead and which node gets which layers"),
    "doctor": Command(_doctor, "check every node and say what to mend"),
}
