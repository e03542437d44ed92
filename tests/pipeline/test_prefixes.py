"""The prefix index against a scan of everything, and what is kept within its bounds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipeline.prefixes import BLOCK, Prefix, PrefixCache, PrefixIndex, Tokens

# Texts of few kinds of tokens with long common beginnings, the way chats have them.
STEMS = [[i % n for i in range(70)] for n in (2, 3)]
TEXTS = st.builds(
    lambda stem, cut, own: tuple(stem[:cut] + own),
    st.sampled_from(STEMS),
    st.one_of(st.integers(0, 70), st.sampled_from([15, 16, 17, 31, 32, 48])),
    st.lists(st.integers(0, 2), max_size=20),
)


def common(one: Tokens, other: Tokens) -> int:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


class IndexMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index, self.known = PrefixIndex(), dict[int, Tokens]()

    @rule(sequence=st.integers(0, 8), tokens=TEXTS)
    def put(self, sequence: int, tokens: Tokens) -> None:
        self.index.put(sequence, tokens)
        self.known[sequence] = tokens

    @rule(sequence=st.integers(0, 8))
    def drop(self, sequence: int) -> None:
        self.index.drop(sequence)
        self.known.pop(sequence, None)
        assert sequence not in self.index

    @rule(tokens=TEXTS)
    def look_up(self, tokens: Tokens) -> None:
        found = list(self.index.matches(tokens))
        expected = {s: common(text, tokens) for s, text in self.known.items()}
        assert dict(found) == {s: n for s, n in expected.items() if n >= BLOCK}
        assert len(found) == len(dict(found))
        lengths = [length for _, length in found]
        assert lengths == sorted(lengths, reverse=True)

    @invariant()
    def sound(self) -> None:
        assert len(self.index) == len(self.known)

    def teardown(self) -> None:
        for sequence in list(self.known):
            self.drop(sequence)
        assert not self.index._sharing, "keys are left"


TestIndex = IndexMachine.TestCase
TestIndex.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


class CacheMachine(RuleBasedStateMachine):
    """Sequences run, are kept, and are used; a plain dict knows what the stages hold."""

    @initialize(
        max_tokens=st.sampled_from([0, 40, 200, 10_000]),
        max_sequences=st.sampled_from([1, 4, 100]),
        cut_limit=st.sampled_from([None, 0, 40]),
    )
    def start(self, max_tokens: int, max_sequences: int, cut_limit: int | None) -> None:
        self.cache = PrefixCache(max_tokens, max_sequences, cut_limit)
        self.planned: dict[int, Tokens] = {}
        self.held: dict[int, int] = {}
        self.kept: dict[int, Tokens] = {}  # in the order of use
        self.next = 0

    def usable(self, content: Tokens, tokens: Tokens) -> int:
        """Tokens of a prompt that a copy of `content` can serve."""
        length, limit = common(content, tokens), self.cache.cut_limit
        whole = length == len(content)
        return length if whole or limit is None or len(content) <= limit else 0

    @rule(tokens=TEXTS)
    def begin(self, tokens: Tokens) -> None:
        self.cache.begin(self.next, tokens)
        self.planned[self.next], self.held[self.next] = tokens, 0
        self.next += 1

    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        if self.planned:
            sequence = data.draw(st.sampled_from(sorted(self.planned)))
            tokens = self.planned[sequence]
            self.held[sequence] = data.draw(st.integers(self.held[sequence], len(tokens)))
            self.cache.grow(sequence, self.held[sequence])

    @rule(data=st.data(), output=st.lists(st.integers(0, 2), max_size=20))
    def end(self, data: st.DataObject, output: list[int]) -> None:
        if not self.planned:
            return
        sequence = data.draw(st.sampled_from(sorted(self.planned)))
        tokens, held = self.planned.pop(sequence), self.held.pop(sequence)
        content = tokens + tuple(output) if held == len(tokens) else tokens[:held]
        if data.draw(st.booleans()):
            self.cache.forget(sequence)
            return
        gone = self.cache.keep(sequence, content)
        assert len(set(gone)) == len(gone)
        if sequence in gone:
            assert gone == [sequence]
            covered = any(self.usable(k, content) == len(content) for k in self.kept.values())
            assert covered or not BLOCK <= len(content) <= self.cache.max_tokens
        self.kept[sequence] = content
        for other in gone:
            del self.kept[other]

    @rule(tokens=TEXTS)
    def find(self, tokens: Tokens) -> None:
        contents = {s: self.planned[s][: self.held[s]] for s in self.planned} | self.kept
        best = max((self.usable(c, tokens) for c in contents.values()), default=0)
        found = self.cache.find(tokens)
        if best < BLOCK or not self.cache.enabled:
            assert found is None
            return
        assert found is not None
        assert found.length == best == self.usable(contents[found.sequence], tokens)
        self.cache.use(found)
        assert found.sequence not in self.kept or self.cache.kept[-1] == found.sequence

    @rule(tokens=TEXTS, sequence=st.integers(0, 30))
    def find_promised(self, tokens: Tokens, sequence: int) -> None:
        coming = {
            s: self.usable(text, tokens)
            for s, text in self.planned.items()
            if s < sequence and self.held[s] < len(text) and len(text) >= BLOCK
        }
        best = max(coming.values(), default=0)
        found = self.cache.find_promised(sequence, tokens)
        if best < BLOCK or not self.cache.enabled:
            assert found is None
            return
        assert found == Prefix(found.sequence, best) if found else False
        assert coming[found.sequence] == best
        assert found is None or self.cache.pending(found) == (self.held[found.sequence] < best)

    @rule(tokens=st.integers(-5, 120))
    def shrink(self, tokens: int) -> None:
        order = self.cache.kept
        gone = self.cache.shrink(tokens)
        assert tuple(gone) == order[: len(gone)], "not the least recently used"
        for sequence in gone:
            del self.kept[sequence]
        assert self.cache.tokens <= max(tokens, 0)

    @invariant()
    def bounded(self) -> None:
        if not hasattr(self, "cache"):
            return
        cache = self.cache
        assert set(cache.kept) == set(self.kept)
        assert cache.tokens == sum(map(len, self.kept.values())) <= cache.max_tokens
        assert len(cache.kept) <= cache.max_sequences
        assert (cache.stats.sequences, cache.stats.tokens) == (len(self.kept), cache.tokens)


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


@given(st.lists(TEXTS, min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_what_can_be_cut_is_kept_once(texts: list[Tokens]) -> None:
    cache = PrefixCache(10_000, 100, None)
    for sequence, text in enumerate(texts):
        cache.keep(sequence, text)
    kept = [texts[sequence] for sequence in cache.kept]
    for one in kept:
        assert sum(common(one, other) == len(one) for other in kept) == 1


def test_hashes_are_of_whole_tokens() -> None:
    """Neither the order of tokens nor what they look like side by side may be mixed up."""
    index = PrefixIndex()
    index.put(0, (1, 256) + (0,) * 30)
    assert list(index.matches((256, 1) + (0,) * 30)) == []
    assert list(index.matches((1 + (256 << 32), 0) + (0,) * 30)) == []
    assert list(index.matches((1, 256) + (0,) * 30)) == [(0, 32)]
