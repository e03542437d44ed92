"""The HTTP API: where it listens and what it bears."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from config.access import RoleName
from config.section import DYNAMIC, Section
from config.values import Count, Flag, Port, Seconds, Size, Text

_NAME = re.compile(r"[^\s/:*]+")
_ORIGIN = re.compile(r"\*|https?://[^/\s*]+")


def _is_origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise ValueError(
            'should be an origin such as "https://chat.example.org", without a path, or "*"'
        )
    return text


def _is_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError('should be a name of a host such as "llm.example.org", without a port')
    return text


HostName = Annotated[Text, AfterValidator(_is_name)]
Origin = Annotated[Text, AfterValidator(_is_origin)]


class ApiGatewayConfig(Section):
    host: Text = Field(default="127.0.0.1", description="Address the OpenAI API listens on.")
    port: Port = Field(default=8000, description="Port of the OpenAI API, on the node of rank 0.")
    timeout: Seconds = Field(
        default=300.0,
        description="Seconds a request may wait for its first token (queue and prefill) before 503.",
        json_schema_extra=DYNAMIC,
    )
    max_concurrent_requests: Count = Field(
        default=100,
        description="Requests running and waiting together; one more is refused with 503.",
        json_schema_extra=DYNAMIC,
    )
    max_body_bytes: Size = Field(
        default=Size(4 * 2**20), description="Largest request body in bytes; a larger one gets 413."
    )
    cors_origins: tuple[Origin, ...] = Field(
        default=(),
        description='Origins of web pages that may call the API from a browser, "*" for any; '
        "empty: none may.",
    )
    host_names: tuple[HostName, ...] = Field(
        default=("host.docker.internal",),
        description="Names by which clients may call the API, besides addresses and localhost; looked at "
        "only where no key is asked for and only this machine is served.",
    )
    model_autoswitch: Flag = Field(
        default=False,
        description="Whether a request for a configured model that is not loaded has the launcher load "
        "it in place of the one that is; it gets 503 until then. Needs the launcher.",
    )
    model_autoswitch_role: RoleName = Field(
        default="operator",
        description="Role of a key from which on model_autoswitch counts: user, operator or admin.",
    )
    model_autoswitch_stay: Seconds = Field(
        default=60.0,
        description="Seconds that a model is served at least before model_autoswitch loads another one.",
    )
    deduplicate: Flag = Field(
        default=False,
        description="Whether identical sequences in flight of one key are computed once: equal prompts and "
        "parameters, and greedy or of the same seed. Each is counted and answered as its own.",
    )
