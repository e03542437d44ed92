"""Which sequence on the stages begins like a new prompt: pure bookkeeping on rank 0.

`PrefixIndex` finds contents that share a beginning.  `PrefixCache` knows how much of it the stages hold, in the
order of the frames, which finished sequences are kept for later prompts, and which of them has to go first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

BLOCK = 16
"""Tokens that are hashed together.  A shorter prefix is not worth a copy, and is not found."""

BLOCK_BYTES = BLOCK * array("q").itemsize

Tokens = tuple[int, ...]


class PrefixIndex:
    """Contents by the hashes of their leading blocks.

    The hash is a cryptographic one: equal hashes count as equal tokens, also where clients choose them.
    """

    def __init__(self) -> None:
        self._tokens: dict[int, Tokens] = {}
        self._keys: dict[
            int, tuple[bytes, ...]
        ] = {}  # of the whole blocks; each key covers all before it
        self._sharing: dict[
            bytes, dict[int, None]
        ] = {}  # key: sequences, in the order of their puts

    def __len__(self) -> int:
        return len(self._tokens)

    def __contains__(self, sequence: int) -> bool:
        return sequence in self._tokens

    def tokens(self, sequence: int) -> Tokens:
        """The content of a sequence."""
        return self._tokens[sequence]

    def put(self, sequence: int, tokens: Tokens) -> None:
        """Set the content of a sequence."""
        self.drop(sequence)
        keys = _keys(tokens)
        self._tokens[sequence], self._keys[sequence] = tokens, keys
        for key in keys:
            self._sharing.setdefault(key, {})[sequence] = None

    def drop(self, sequence: int) -> None:
        """Forget a sequence; unknown ones are ignored."""
        self._tokens.pop(sequence, None)
        for key in self._keys.pop(sequence, ()):
            sharing = self._sharing[key]
            del sharing[sequence]
            if not sharing:
                del self._sharing[key]

    def matches(self, tokens: Tokens) -> Iterator[tuple[int, int]]:
        """Sequences that share at least one block with `tokens`, and how many leading tokens; most first."""
        path: list[dict[int, None]] = []
        for key in _keys(tokens):
            sharing = self._sharing.get(key)
            if sharing is None:
                break
            path.append(sharing)
        seen: set[int] = set()
        while path:
            level = len(path) * BLOCK
            sharing = path.pop()
            if len(sharing) == len(seen):  # sequences of a longer match are in all shorter ones
                continue
            fresh = [sequence for sequence in sharing if sequence not in seen]
            seen.update(fresh)
            found = [(s, self._common(s, tokens, level)) for s in fresh]
            yield from sorted(found, key=lambda match: -match[1])

    def _common(self, sequence: int, tokens: Tokens, level: int) -> int:
        """Leading tokens that are equal: `level` by the hashes, and less than a block more."""
        mine = self._tokens[sequence]
        ahead = zip(mine[level : level + BLOCK], tokens[level : level + BLOCK], strict=False)
        for more, (one, other) in enumerate(ahead):
            if one != other:
                return level + more
        return min(len(mine), len(tokens), level + BLOCK)


@lru_cache(maxsize=4)  # a prompt is looked up and registered one after the other
def _keys(tokens: Tokens) -> tuple[bytes, ...]:
    content = array("q", tokens).tobytes()
    keys, key = [], b""
    for end in range(BLOCK_BYTES, len(content) + 1, BLOCK_BYTES):
        key = blake2b(key + content[end - BLOCK_BYTES : end], digest_size=16).digest()
        keys.append(key)
    return tuple(keys)


@dataclass(frozen=True)
class Prefix:
    """The first `length` tokens of what `sequence` holds."""

    sequence: int
    length: int


@dataclass(frozen=True)
class PrefixStats:
    """Counters since the start, and what is kept at this moment."""

    queries: int = 0  # admitted prompts long enough for a hit
    hits: int = 0
    hit_tokens: int = 0  # that were not prefilled
    sequences: int = 0
    tokens: int = 0


class PrefixCache:
    """Sequences on the stages as sources of prefixes.

    Running ones are registered with `begin`, and `grow` as frames are handed out; a finished one is either kept
    by `keep` or forgotten by `forget`.  Ids grow with time.
    """

    def __init__(self, max_tokens: int, max_sequences: int, cut_limit: int | None) -> None:
        """Keep at most `max_tokens` of finished sequences, 0: none and share nothing.

        `cut_limit`: see pipeline.split.forking.
        """
        self.max_tokens, self.max_sequences, self.cut_limit = max_tokens, max_sequences, cut_limit
        self._index = PrefixIndex()
        self._held: dict[int, int] = {}  # tokens on the stages
        self._kept: OrderedDict[int, int] = OrderedDict()  # tokens; least recently used first
        self._tokens = 0  # of all kept ones
        self._queries = self._hits = self._hit_tokens = 0

    @property
    def enabled(self) -> bool:
        """Whether anything is shared or kept."""
        return self.max_tokens >= BLOCK and self.max_sequences > 0

    @property
    def kept(self) -> tuple[int, ...]:
        """Finished sequences on the stages, least recently used first."""
        return tuple(self._kept)

    @property
    def tokens(self) -> int:
        """Cache entries of the kept sequences."""
        return self._tokens

    @property
    def stats(self) -> PrefixStats:
        """A momentary view; other threads may ask."""
        return PrefixStats(
            self._queries, self._hits, self._hit_tokens, len(self._kept), self._tokens
        )

    # running sequences

    def begin(self, sequence: int, tokens: Tokens) -> None:
        """`tokens` will be prefilled; nothing is on the stages."""
        if self.enabled and len(tokens) >= BLOCK:
            self._index.put(sequence, tokens)
            self._held[sequence] = 0

    def grow(self, sequence: int, held: int) -> None:
        """The stages hold `held` tokens once they have applied the frames handed out so far."""
        if sequence in self._held:
            self._held[sequence] = held

    def forget(self, sequence: int) -> None:
        """A sequence that is not kept."""
        self._index.drop(sequence)
        self._held.pop(sequence, None)
        self._tokens -= self._kept.pop(sequence, 0)

    # look-ups

    def find(self, tokens: Tokens) -> Prefix | None:
        """The longest prefix of `tokens` that a sequence can be started from at once."""
        best: Prefix | None = None
        for sequence, common in self._index.matches(tokens) if self.enabled else ():
            if best is not None and common <= best.length:
                break
            length = self._usable(common, self._held[sequence])
            if length >= BLOCK and (best is None or length > best.length):
                best = Prefix(sequence, length)
        return best

    def find_promised(self, sequence: int, tokens: Tokens) -> Prefix | None:
        """The longest prefix that a sequence older than `sequence` will have prefilled."""
        best: Prefix | None = None
        for other, common in self._index.matches(tokens) if self.enabled else ():
            if best is not None and common <= best.length:
                break
            planned = len(self._index.tokens(other))
            if other < sequence and self._held[other] < planned:
                length = self._usable(common, planned)
                if length and (best is None or length > best.length):
                    best = Prefix(other, length)
        return best

    def pending(self, promised: Prefix) -> bool:
        """Whether the stages are still to get what was promised."""
        held = self._held.get(promised.sequence)
        if held is None:
            return False
        return held < min(promised.length, len(self._index.tokens(promised.sequence)))

    def _usable(self, common: int, held: int) -> int:
        """Of `common` tokens, how many a copy of a sequence with `held` tokens can have."""
        length = min(common, held)
        whole = length == held
        return length if whole or self.cut_limit is None or held <= self.cut_limit else 0

    def use(self, prefix: Prefix | None) -> None:
        """A prompt that could have a prefix was admitted, with this one."""
        self._queries += self.enabled
        if prefix is not None:
            self._hits += 1
            self._hit_tokens += prefix.length
            if prefix.sequence in self._kept:
                self._kept.move_to_end(prefix.sequence)

    # finished sequences

    def keep(self, sequence: int, tokens: Tokens) -> list[int]:
        """Keep a sequence that holds `tokens`, as the most recently used.

        Returns the kept sequences that have to be released for it, or itself where keeping it is no use.
        """
        self.forget(sequence)
        if not BLOCK <= len(tokens) <= self.max_tokens or not self.enabled:
            return [sequence]
        if self._covers(tokens):
            return [sequence]
        replaced = self._covered_by(tokens)
        for other in replaced:
            self.forget(other)
        self._index.put(sequence, tokens)
        self._held[sequence] = self._kept[sequence] = len(tokens)
        self._tokens += len(tokens)
        return replaced + self.shrink(self.max_tokens)

    def _covers(self, tokens: Tokens) -> bool:
        """Whether all of `tokens` can be had from a kept sequence, which then counts as used."""
        for other, common in self._index.matches(tokens):
            if common < len(tokens):
                return False
            if other in self._kept and self._usable(common, self._held[other]) == len(tokens):
                self._kept.move_to_end(other)
                return True
        return False

    def _covered_by(self, tokens: Tokens) -> list[int]:
        """Kept sequences of no use beside one that holds `tokens`."""
        if self.cut_limit is not None and len(tokens) > self.cut_limit:
            return []
        return [
            other
            for other, common in self._index.matches(tokens)
            if other in self._kept and common == self._held[other]
        ]

    def shrink(self, tokens: int) -> list[int]:
        """Forget the least recently used ones until at most `tokens` are kept; returns them."""
        gone: list[int] = []
        while self._tokens > max(tokens, 0) or len(self._kept) > self.max_sequences:
            gone.append(next(iter(self._kept)))
            self.forget(gone[-1])
        return gone
