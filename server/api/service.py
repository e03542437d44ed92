"""What the HTTP side is given: the model it serves, the engine behind it, and its limits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import structlog

from pipeline.request import FinishReason, Generator
from pipeline.sampling.grammar import Grammars, vocabulary_of
from server.access import account
from server.api.body import BodyReader
from server.api.defaults import SamplingDefaults
from server.api.errors import NotReady, Overloaded, UnknownModel
from server.api.switching import Switching
from server.api.text_work import TextWork
from server.api.token_bound import TokenBound, bound_of
from server.api.vocabulary import Tokenizer, Vocabulary

# A client that invents field names must not fill memory or the log.
MAX_NAMES_LOGGED = 256
MAX_NAME_CHARS = 80

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """The model that answers.  `end_tokens` end a sequence unless a request says ignore_eos."""

    id: str
    tokenizer: Tokenizer
    max_model_len: int  # tokens, prompt and output together
    created: int  # Unix time, seconds
    end_tokens: tuple[int, ...]
    vocab_size: int  # ids from 0 that the model's embedding knows
    aliases: tuple[str, ...] = ()
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)

    def answers_to(self, name: str) -> bool:
        return name == self.id or name in self.aliases

    @cached_property
    def grammars(self) -> Grammars:
        """To check constraints before a stage sees them."""
        return Grammars(lambda: vocabulary_of(self.tokenizer, self.vocab_size))

    @cached_property
    def special_tokens(self) -> frozenset[int]:
        """What marks the structure of a text and is none of it."""
        return frozenset(self.tokenizer.all_special_ids)

    @cached_property
    def token_bound(self) -> TokenBound:
        """Takes a second to find out: not in the event loop."""
        return bound_of(self.tokenizer)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer)


@dataclass(frozen=True)
class Listed:
    """A configured model, loaded or not."""

    id: str
    max_model_len: int | None = None  # as far as it is known without loading it
    aliases: tuple[str, ...] = ()

    def answers_to(self, name: str) -> bool:
        return name == self.id or name in self.aliases


@dataclass
class Service:
    """One per process.  `model` and `generator` are None while the model loads."""

    readiness: Callable[
        [], str | None
    ]  # why nothing can be served at the moment; None: all is well
    model: ServedModel | None = None
    generator: Generator | None = None
    max_body_bytes: int = 8 << 20
    max_concurrent_requests: int = 100  # sequences, each prompt of a list counts
    first_token_timeout: float = 60.0  # seconds
    keep_alive_interval: float = 15.0  # seconds between comments in a stream
    catalog: tuple[Listed, ...] = ()  # all models that are configured
    cors_origins: tuple[str, ...] = ()  # of web pages that may call from a browser
    switching: Switching = field(default_factory=Switching)
    log_prompts: bool = False  # for debugging: what was asked and answered goes to the log
    # Called with a sequence's id when its text has ended.
    on_finish: Callable[[str, FinishReason], None] = lambda sequence, reason: None
    started: int = field(default_factory=lambda: int(time.time()), init=False)  # Unix time, seconds
    clock: Callable[[], float] = time.monotonic
    loaded_at: float = -math.inf  # by the clock: since when the model can be asked
    running: int = field(default=0, init=False)
    bodies: BodyReader = field(init=False)
    texts: TextWork = field(default_factory=TextWork, init=False)
    _logged: set[str] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.bodies = BodyReader(self.max_body_bytes)

    def serving(self, name: str) -> tuple[ServedModel, Generator]:
        """The model called `name` and its engine; raises NotReady, NotLoaded or UnknownModel."""
        reason = self.readiness()
        if reason is not None:
            raise NotReady(reason)
        if self.model is None or self.generator is None:
            raise NotReady("The model is still loading.")
        if not self.model.answers_to(name):
            other = self.listed(name)
            if other is not None:
                asker, age = account.current().principal, self.clock() - self.loaded_at
                raise self.switching.not_loaded(other.id, self.model.id, asker.role, age)
            message = f"The model {name!r} is not served here; this server has {self.model.id!r}."
            raise UnknownModel(message, param="model")
        return self.model, self.generator

    def listed(self, name: str) -> Listed | None:
        """The configured model called `name`."""
        return next((entry for entry in self.catalog if entry.answers_to(name)), None)

    @contextmanager
    def admitted(self, sequences: int) -> Iterator[None]:
        """Hold places for `sequences` sequences; raises Overloaded when there are too few."""
        if self.running + sequences > self.max_concurrent_requests:
            raise Overloaded(
                f"The server is at its limit of {self.max_concurrent_requests} concurrent requests."
            )
        self.running += sequences
        try:
            yield
        finally:
            self.running -= sequences

    def note_unknown_fields(self, names: Iterable[str]) -> None:
        """Log each field name that is ignored, the first time it is seen."""
        for name in (full[:MAX_NAME_CHARS] for full in names):
            if name not in self._logged and len(self._logged) < MAX_NAMES_LOGGED:
                self._logged.add(name)
                log.warning("unknown request field ignored", field=name)
