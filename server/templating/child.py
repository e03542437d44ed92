"""The process in which chat templates run.  It ends with its standard input.

It reads lines of JSON: first {"templates": ..., "special": {...}}, then one {"conversation": ..., ...} for each
rendering, each answered by a line.  transformers renders in Jinja's sandbox, as it does in the server's own
process; what the sandbox can't do, bounding time and memory, is done by being a process.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any, TextIO

MEMORY_BYTES = 1 << 30  # more than this process has when it starts; only Linux heeds it
FAILURES_OF_TEMPLATES = (
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)


def main(source: TextIO, sink: TextIO) -> None:
    """Serve until `source` ends."""
    import jinja2
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    line = source.readline()
    if not line:
        return  # it was started beforehand, and is not needed
    given = json.loads(line)
    tokenizer = PreTrainedTokenizerBase(chat_template=given["templates"])
    _confine()
    _answer(sink, {"ready": True})
    for line in source:
        asked = json.loads(line)
        longest = asked.pop("longest")
        try:
            text = tokenizer.apply_chat_template(
                asked.pop("conversation"), tokenize=False, **{**given["special"], **asked}
            )
            answer = _checked(text, longest)
        except jinja2.TemplateSyntaxError as error:
            answer = {"error": str(error.message), "line": error.lineno}
        except (jinja2.TemplateError, *FAILURES_OF_TEMPLATES) as error:
            answer = {"error": str(error) or type(error).__name__}
        _answer(sink, answer)


def _checked(text: Any, longest: int) -> dict[str, Any]:
    if len(text) > longest:
        return {"error": f"its text has more than {longest} characters"}
    return {"text": text}


def _confine() -> None:
    """No files, no more processes, and bounded memory."""
    for kind in (resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            size = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, size + MEMORY_BYTES))


def _answer(sink: TextIO, answer: dict[str, Any]) -> None:
    sink.write(json.dumps(answer) + "\n")
    sink.flush()


if __name__ == "__main__":
    main(sys.stdin, sys.stdout)
