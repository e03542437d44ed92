"""gRPC settings that client and server share."""

from __future__ import annotations

MAX_MESSAGE_BYTES = 1 << 20  # a status of hundreds of ranks is far below

# Pings only notice a peer that vanished under an open WatchState; heartbeats do it for ranks.
KEEPALIVE_MS = 30_000
KEEPALIVE_TIMEOUT_MS = 10_000

_COMMON = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
)

SERVER_OPTIONS = (
    *_COMMON,
    # Otherwise two servers share a port silently, each with half of the ranks.
    ("grpc.so_reuseport", 0),
    # Below the clients' keepalive time, else the server hangs up on them for pinging too often.
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
)

CLIENT_OPTIONS = (
    *_COMMON,
    # Ranks are neighbours; a proxy from the environment can't reach them.
    ("grpc.enable_http_proxy", 0),
    # Ranks start in any order: notice soon that the coordinator has come up.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
