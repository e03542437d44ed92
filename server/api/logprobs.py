"""Log probabilities in the two forms of the API."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from server.api.text import Span
from server.api.vocabulary import Vocabulary, readable
from server.api.wire import finite


def chat_logprobs(spans: Iterable[Span], vocabulary: Vocabulary) -> dict[str, Any]:
    """The `logprobs` object of a chat choice or delta."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = vocabulary.bytes_of(token)
        return {"token": readable(raw), "logprob": finite(logprob), "bytes": list(raw)}

    content = []
    for span in spans:
        if (found := span.event.logprobs) is not None:
            top = [entry(token, logprob) for token, logprob in found.top]
            content.append({**entry(span.event.token, found.chosen), "top_logprobs": top})
    return {"content": content, "refusal": None}


def completion_logprobs(
    spans: Iterable[Span], vocabulary: Vocabulary, *, with_top: bool
) -> dict[str, Any]:
    """The `logprobs` object of a completion; text offsets are characters from the start of the output.

    The chosen token is always among the top ones, so there may be one more than asked for.
    """
    tokens, chosen, tops, offsets = [], [], [], []
    for span in spans:
        if (found := span.event.logprobs) is None:
            continue
        name = readable(vocabulary.bytes_of(span.event.token))
        tokens.append(name)
        chosen.append(finite(found.chosen))
        top = {readable(vocabulary.bytes_of(t)): finite(logprob) for t, logprob in found.top}
        tops.append({**top, name: finite(found.chosen)})
        offsets.append(span.start)
    return {
        "tokens": tokens,
        "token_logprobs": chosen,
        "top_logprobs": tops if with_top else None,
        "text_offset": offsets,
    }
