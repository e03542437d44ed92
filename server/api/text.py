"""From token ids to the text a client may see: detokenization and stop strings as state machines.

Nothing here knows HTTP or the engine.  However the tokens or the text are cut into pieces, the concatenated
output is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.request import FinishReason, TokenEvent

REPLACEMENT = "\ufffd"

LONGEST_CHARACTER = 4  # bytes of UTF-8, each of them a token at worst
CONTEXT_TOKENS = 6  # kept before the next token; more than an unfinished character can have
WINDOW_TOKENS = 18  # decoded again at each token, so a small constant
HELD_TOKENS = 8  # longest wait for a character to be completed


class Detokenizer:
    """Text of a growing sequence of tokens, each character as soon as no later token can change it.

    Only a sliding window is decoded: what a token adds is the difference that it makes to the
    text of the window (the idea of the prefix and read offsets in Hugging Face's
    text-generation-inference).  So it works for every tokenizer that can decode, at a constant
    cost per token.  mlx-lm's own streaming detokenizers drop a leading space of the output and
    show special tokens, both wrong for a completion.

    decode: ids -> text, invalid UTF-8 replaced by U+FFFD.
    context: the tokens before the first one.  With them, an output that continues the prompt
        keeps the space that some tokenizers strip from the beginning of a text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = self._tail(context)
        self._shown = len(self._text().rstrip(REPLACEMENT))
        self._held = 0

    def push(self, token: int) -> str:
        """The text that became certain with `token`."""
        self._window.append(token)
        text = self._text()
        unfinished = text.endswith(REPLACEMENT)
        if unfinished and self._held < HELD_TOKENS:
            self._held += 1
            return ""
        self._held = 0
        return self._show(text, keep=1 if unfinished else 0)

    def flush(self) -> str:
        """What is left when no token follows."""
        text = self._text()
        fresh = text[self._shown :]
        self._shown = len(text)
        return fresh

    def _show(self, text: str, keep: int) -> str:
        """Show `text` but for the last `keep` characters, and move the window on."""
        end = len(text) - keep
        fresh = text[self._shown : end]
        if len(self._window) >= WINDOW_TOKENS:
            self._window = self._tail(self._window)
            end = len(self._text()) - keep
        self._shown = end
        return fresh

    def _tail(self, tokens: Sequence[int]) -> list[int]:
        """The last tokens, from a whole character on: byte tokens decode all or none of a run."""
        for size in range(CONTEXT_TOKENS, CONTEXT_TOKENS + LONGEST_CHARACTER):
            tail = list(tokens[-size:])
            if not tail or not self._decode(tail).startswith(REPLACEMENT):
                break
        return tail

    def _text(self) -> str:
        return self._decode(self._window) if self._window else ""


class StopScanner:
    """Cuts a text before the first stop string in it, and never shows a part of that stop string.

    The first stop string is the one that is complete first, and among those the longest: what a reader of
    single characters would see, so that the cut does not depend on how the text arrives.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""  # longest end of the text so far that may begin a stop string
        self.matched: str | None = None

    def push(self, text: str, *, armed: bool = True) -> str:
        """The part of the text that is safe to show.

        armed: whether a stop string that becomes complete in `text` ends the output.  If not, it is text
        like any other.  Nothing may be pushed after a match.
        """
        assert self.matched is None
        if not self._stops:
            return text
        seen = len(self._held)
        text = self._held + text
        if armed and (cut := self._find(text, seen)) is not None:
            self._held = ""
            return text[:cut]
        safe = len(text) - max(overlap(text, stop) for stop in self._stops)
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """The text held back, which turned out to be no stop string."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str, seen: int) -> int | None:
        """Where the first stop string that ends after the first `seen` characters begins."""
        found = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := text.find(stop, max(0, seen - len(stop) + 1))) >= 0
        ]
        if not found:
            return None
        _, start, self.matched = min(found)
        return start


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


@dataclass(frozen=True)
class Span:
    """A generated token and the characters [start, end) of the output that came with it."""

    event: TokenEvent
    start: int
    end: int


@dataclass(frozen=True)
class Delta:
    """What one more token adds to the visible output."""

    text: str
    spans: tuple[Span, ...]  # tokens whose text is now shown
    finish: FinishReason | None


class TextStream:
    """Tokens of one sequence in, visible text and the tokens behind it out.

    min_tokens: a stop string that is complete before this many tokens does not end the output.
    """

    def __init__(
        self, detokenizer: Detokenizer, stops: Sequence[str] = (), min_tokens: int = 0
    ) -> None:
        self._detokenizer = detokenizer
        self._scanner = StopScanner(stops)
        self._min_tokens = min_tokens
        self._waiting: list[Span] = []
        self._decoded = 0  # characters the detokenizer gave
        self._shown = 0  # characters that left here
        self.tokens = 0  # generated, whether visible or not
        self._texts: list[str] = []

    @property
    def stop(self) -> str | None:
        """The stop string that ended the output."""
        return self._scanner.matched

    def push(self, event: TokenEvent) -> Delta:
        """Take one token; nothing may be pushed after a delta with a finish reason."""
        self.tokens += 1
        text = self._decode(event)
        shown = self._scanner.push(text, armed=self.tokens >= self._min_tokens)
        if self._scanner.matched is None and event.finish is not None:
            shown += self._scanner.flush()
        self._shown += len(shown)
        self._texts.append(shown)
        finish = event.finish if self._scanner.matched is None else "stop"
        return Delta(shown, self._take_spans(finish), finish)

    @property
    def text(self) -> str:
        """All that was shown."""
        return "".join(self._texts)

    def _decode(self, event: TokenEvent) -> str:
        ends = event.finish == "stop"  # the engine stops only at end tokens, which are no text
        text = "" if ends else self._detokenizer.push(event.token)
        if event.finish is not None:
            text += self._detokenizer.flush()
        start, self._decoded = self._decoded, self._decoded + len(text)
        if not ends:
            self._waiting.append(Span(event, start, self._decoded))
        return text

    def _take_spans(self, finish: FinishReason | None) -> tuple[Span, ...]:
        if self._scanner.matched is not None:
            ready = [span for span in self._waiting if span.start < self._shown]
        elif finish is not None:
            ready = self._waiting
        else:
            count = 0
            # A token without text waits for the text after it, which a stop string may yet cut off.
            while count < len(self._waiting) and self._is_shown(self._waiting[count]):
                count += 1
            ready = self._waiting[:count]
        self._waiting = self._waiting[len(ready) :]
        return tuple(ready)

    def _is_shown(self, span: Span) -> bool:
        return span.start < self._shown and span.end <= self._shown
