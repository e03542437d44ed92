"""What is told of a sequence whose output can't go on: to its client why, to the log only that."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from structlog.testing import CapturingLogger

from pipeline import delivery
from pipeline.delivery import RunningRequest
from pipeline.errors import ConstraintRefused
from pipeline.request import GenerationRequest, SamplingParams


def test_the_log_does_not_quote_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    log = CapturingLogger()
    monkeypatch.setattr(delivery, "log", log)
    request = GenerationRequest(
        id="r", prompt=(1,), params=SamplingParams(), max_tokens=5, origin="req_1"
    )
    running = RunningRequest(1, request, Mock(), Mock())
    error = running.given_up('token "zebrafish" doesn\'t satisfy the grammar')
    assert isinstance(error, ConstraintRefused)
    assert "zebrafish" in str(error)
    (call,) = log.calls
    assert call.kwargs["request_id"] == "req_1"
    assert "zebrafish" not in repr(call)
