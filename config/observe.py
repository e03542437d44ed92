"""What the cluster tells of itself: logs, traces, resources and alerts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from config.section import DYNAMIC, Section
from config.values import Auto, Count, Seconds, Text

Percent = Annotated[float, Field(strict=True, gt=0, le=100)]
Degrees = Annotated[float, Field(strict=True, gt=0, le=200)]


class AlertsConfig(Section):
    cpu_percent: Auto[Percent] = Field(
        default=None,
        description="CPU use of a node in percent from which an alert is raised; auto: never, as "
        "a busy CPU is what one pays for.",
        json_schema_extra=DYNAMIC,
    )
    memory_percent: Auto[Percent] = Field(
        default=95.0,
        description="Memory use of a node in percent from which an alert is raised; auto: never.",
        json_schema_extra=DYNAMIC,
    )
    gpu_memory_percent: Auto[Percent] = Field(
        default=98.0,
        description="Use of what weights and caches of a rank may take, in percent, from which an alert "
        "is raised; auto: never.",
        json_schema_extra=DYNAMIC,
    )
    disk_percent: Auto[Percent] = Field(
        default=95.0,
        description="Use of the disk that holds the model in percent from which an alert is raised; "
        "auto: never.",
        json_schema_extra=DYNAMIC,
    )
    temperature: Auto[Degrees] = Field(
        default=100.0,
        description="Temperature of the hottest sensor in degrees Celsius from which an alert is "
        "raised, where the platform tells it; auto: never.",
        json_schema_extra=DYNAMIC,
    )
    heartbeats: Auto[Count] = Field(
        default=2,
        description="Heartbeats in a row that may be late before an alert is raised; auto: never.",
        json_schema_extra=DYNAMIC,
    )


def _is_http(url: str | None) -> str | None:
    if url is not None and not url.startswith(("http://", "https://")):
        raise ValueError("should begin with http:// or https://")
    return url


class ObserveConfig(Section):
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="The least grave log lines that are written.",
        json_schema_extra=DYNAMIC,
    )
    log_format: Auto[Literal["text", "json"]] = Field(
        default=None,
        description="Form of log lines: text to be read, json for programs; auto: text on a terminal and "
        "under mlx.launch, which shows them on one, else json.",
    )
    log_lines: Count = Field(
        default=2000,
        description="Latest log lines of all ranks that the coordinator keeps.",
    )
    resource_interval: Seconds = Field(
        default=5.0,
        description="Seconds between two looks at CPU, memory, disk, network and temperature of a node.",
    )
    otlp_endpoint: Annotated[Auto[Text], AfterValidator(_is_http)] = Field(
        default=None,
        description="URL of an OpenTelemetry collector (OTLP over HTTP) that gets the traces of requests, "
        "such as http://127.0.0.1:4318; auto: none are made. Needs the extra otel.",
    )
    alerts: AlertsConfig = Field(
        default=AlertsConfig(), description="From where on the resources of a node raise an alert."
    )
