"""From the configured model to its files."""

from __future__ import annotations

from config import DEMO, Config
from pipeline.ahead import Ahead, state_of
from pipeline.checkpoint import Checkpoint, Progress
from pipeline.checkpoint.progress import silent
from pipeline.demo_model import ensure_demo_model

_ahead: Ahead[Checkpoint] = Ahead()


def open_ahead(config: Config) -> Checkpoint:
    """Have `open_checkpoint` return what is opened now, with all that is known without reading weights.

    Raises ModelError.
    """
    state = state_of(_open(config, silent).path)  # from before anything that is kept was read
    checkpoint = _open(config, silent)
    checkpoint.blueprint()
    _ahead.keep(config.model.origin, checkpoint.path, state, checkpoint)
    return checkpoint


def open_checkpoint(config: Config, progress: Progress) -> Checkpoint:
    """The files of the model to serve; the demo model is made first if it is not there.

    Raises ModelError.
    """
    return _ahead.take(config.model.origin) or _open(config, progress)


def _open(config: Config, progress: Progress) -> Checkpoint:
    model = config.model
    source = model.source
    if source == DEMO:
        source = str(ensure_demo_model(progress=lambda line: progress(line, 0, 1)))
    return Checkpoint.open(source, model.revision, model.trust_remote_code, progress)


def max_model_len(config: Config, checkpoint: Checkpoint) -> int | None:
    """Longest sequence in tokens: the smaller of what is configured and what the model allows."""
    known = [n for n in (config.model.max_model_len, checkpoint.max_model_len) if n is not None]
    return min(known, default=None)
