"""Every error of the engine, in one tree.

PipelineError
├── ModelError                  the model can't be served; final, one sentence for the user
│   ├── ModelNotFound           no such folder, or the hub does not have it
│   ├── UnsupportedModel        mlx-lm does not know the architecture, or it can't be split
│   └── CheckpointError         a file is missing, broken or of the wrong shape
├── PlanError                   explicit ranges don't fit the model, or the nodes
│   └── TooLittleMemory         the nodes together can't hold the model; more of them may
├── TransportError              this launch of the ring is over; the process must exit
│   ├── LinkClosed              the neighbour closed the connection
│   ├── LinkTimeout             the neighbour did not do its part in time
│   └── FrameError              a frame that can't be right (bad bytes, wrong order)
├── RequestRejected             this request can't be served; the engine goes on
│   ├── ContextTooLong          prompt + max tokens exceed what the model or the memory allow
│   ├── QueueFull               come back later
│   ├── EngineStopped           the engine is stopping or has failed
│   ├── ConstraintRefused       its grammar is broken, too large, or can't go on
│   ├── RequestCancelled        somebody ended it
│   └── BrokenOutput            the model's output for it can't be sampled
├── StartFailed                 this node can't take part; final, one sentence for the user
└── EngineFault                 a bug or a broken device; the process must exit
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of all errors raised by this package."""

    may_quote = False  # whether the message may hold something of a prompt or an output: then no log shows it


class ModelError(PipelineError):
    """The model can't be served."""


class ModelNotFound(ModelError):
    """The model is neither a folder nor a repository on the hub."""


class UnsupportedModel(ModelError):
    """The architecture is unknown, or can't be split."""


class CheckpointError(ModelError):
    """A file of the model is missing, broken, or does not match the architecture."""


class PlanError(PipelineError):
    """The layers can't be placed on the nodes."""


class TooLittleMemory(PlanError):
    """The nodes together can't hold the model."""


class TransportError(PipelineError):
    """The ring is broken; it can't be re-formed inside this process."""


class LinkClosed(TransportError):
    """The neighbour closed the connection."""


class LinkTimeout(TransportError):
    """The neighbour did not answer before the deadline."""


class FrameError(TransportError):
    """A frame that can't be decoded, or that contradicts the state of this rank."""


class RequestRejected(PipelineError):
    """This one request can't be served."""


class ContextTooLong(RequestRejected):
    """Prompt and max tokens together exceed the limit of the model or of the memory."""

    def __init__(self, asked: int, limit: int, *, least: bool = False) -> None:
        """`least`: it may be even more."""
        self.asked, self.limit = asked, limit
        needed = f"at least {asked}" if least else str(asked)
        super().__init__(
            f"This model's maximum context length is {limit} tokens; the request needs {needed}."
        )


class QueueFull(RequestRejected):
    """As many requests as allowed are running and waiting."""


class EngineStopped(RequestRejected):
    """The engine takes no more requests."""


class ConstraintRefused(RequestRejected):
    """The grammar that the output is to follow is broken, too large, or leads nowhere."""

    may_quote = True


class RequestCancelled(RequestRejected):
    """Somebody else than its client has ended it."""


class BrokenOutput(RequestRejected):
    """The model gave NaN or infinite logits for this sequence."""


class StartFailed(PipelineError):
    """This node can't take part."""


class EngineFault(PipelineError):
    """The engine failed; the process must exit."""
