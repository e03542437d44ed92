"""How every program of this project ends: quietly where nobody reads any more, or where Ctrl-C was pressed."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable

READER_GONE = 128 + signal.SIGPIPE  # as a shell has it of a program that the signal ended
INTERRUPTED = 128 + signal.SIGINT


def run(main: Callable[[], int | None]) -> int:
    """The exit status of a program whose work is `main`."""
    try:
        try:
            return main() or 0
        except BrokenPipeError:
            raise
        except Exception:
            _unread()  # or the flush below would end it with less than the fault
            raise
        finally:
            for stream in filter(None, (sys.stdout, sys.stderr)):
                stream.flush()  # else Python does, when it is too late to be quiet
    except BrokenPipeError:
        if not _unread():
            raise  # it was another pipe, or a connection
        return READER_GONE
    except KeyboardInterrupt:
        return INTERRUPTED


def _unread() -> bool:
    """Whether one of the outputs has lost its reader, as by `| head`; what is left for it is dropped."""
    outputs = [stream.fileno() for stream in (sys.stdout, sys.stderr) if stream is not None]
    broken = [output for output in outputs if _has_no_reader(output)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in broken:
        os.dup2(nowhere, output)
    os.close(nowhere)
    return bool(broken)


def _has_no_reader(output: int) -> bool:
    poll = select.poll()
    poll.register(output, 0)  # its end is told unasked: POLLERR on Linux, POLLHUP on macOS
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
