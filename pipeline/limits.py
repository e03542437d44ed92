"""What the scheduler may use, and how far each request has come."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.prefixes import Prefix


@dataclass(frozen=True)
class Limits:
    """What the scheduler may use.  Token counts are per sequence unless said otherwise."""

    stages: int
    max_requests: int  # running and waiting together
    max_running: int  # sequences that hold caches
    max_group: int  # sequences in one micro-batch, where the architecture can batch
    prefill_chunk: int  # tokens, at most
    fixed_chunk: bool = False  # chunks have just this size, whatever is measured
    batchable: bool = True  # False: a micro-batch is one sequence, whatever is configured
    paddable: bool = True  # False: only prompts of one length are prefilled side by side
    context: int | None = None  # prompt + output of one sequence; None: the model does not say
    # Running and kept sequences together, on the tightest stage; None: no limit.
    kv_tokens: int | None = None
    # Prompts that take turns, so that a short one overtakes a long one; more if they fit into one step.
    max_prefilling: int = 4
    groups: int | None = None  # fixed number of micro-batches; None: as Pacing measures
    # Seconds between two tokens of a running stream, which prefill chunks are sized to keep; None: no bound.
    inter_token: float | None = None
    loops: int = 1  # times the hidden state goes round; such models can't have two steps in flight
    # Of finished sequences that are kept for later prompts; 0: no prefix cache.
    prefix_tokens: int = 0
    prefix_sequences: int = 1024  # of them
    cut_limit: int | None = None  # tokens up to which caches can be cut; None: at any length

    @property
    def group_size(self) -> int:
        """The most sequences in one micro-batch."""
        return self.max_group if self.batchable else 1

    def can_cut(self, tokens: int) -> bool:
        """Whether the caches of a sequence with so many tokens can be cut at any point."""
        return self.cut_limit is None or tokens <= self.cut_limit

    @property
    def prefill_rows(self) -> int:
        """The most prompts in one prefill step."""
        return 1 if self.loops > 1 else self.group_size

    @property
    def deep(self) -> int:
        """Steps of a kind in flight: one in each stage and one on its way to each."""
        return 1 if self.loops > 1 else 2 * self.stages

    @property
    def chunks_between(self) -> int:
        """Of prefill, the most that go out between two steps of a stream: so many that no stage waits.

        While a step goes through the stages, the first one has time for one less than there are.
        """
        return max(1, self.stages - 1)

    @property
    def window(self) -> int:
        """Steps in flight, of any kind: of each group one, chunks before that, and chunks behind it."""
        return (
            self.deep if self.stages == 1 or self.loops > 1 else self.deep + 2 * self.chunks_between
        )


@dataclass
class Sequence:
    """One request as the scheduler sees it."""

    id: int
    prompt: int  # tokens, at least 1
    max_tokens: int
    tokens: tuple[int, ...] = ()  # the prompt, if it may share prefixes
    tenant: str = ""  # whose it is; tenants take turns
    prefilled: int = 0  # tokens of the prompt that were copied, or handed out in chunks
    copied: int = 0  # of these, from a prefix
    decoded: int = 0  # steps handed out
    placed: bool = False  # the stages have been told of it
    awaits: Prefix | None = None  # that another sequence prefills

    @property
    def to_prefill(self) -> int:
        """Prompt tokens still to be handed out.  The last one is fed by the first decode step."""
        return self.prompt - 1 - self.prefilled

    @property
    def held(self) -> int:
        """Tokens in its caches once the stages have applied all steps handed out."""
        return self.prefilled + self.decoded

    @property
    def kv_tokens(self) -> int:
        """Cache entries that it can come to need."""
        return self.prompt + self.max_tokens
