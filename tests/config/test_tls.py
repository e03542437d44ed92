"""The section tls: what it says, what it refuses, and what all nodes must have alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from config import ConfigError, load, settings_digests
from config.tls import TlsConfig


def tls(*settings: str) -> TlsConfig:
    return load(None, {}, settings).config.tls


def test_by_default_there_is_none() -> None:
    assert tls().gateway_paths() is None
    assert not tls().cluster.enabled
    assert not tls().tensors


@pytest.mark.parametrize("off", ["off", "'off'", "false"])
def test_off_is_what_yaml_makes_of_it(off: str) -> None:
    assert tls(f"tls.gateway.mode={off}").gateway.mode == "off"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["tls.tensors=true"], "tls.tensors = true: needs tls.cluster.enabled"),
        (["tls.gateway.mode=files"], "tls.gateway.certificate = null: has to be given where mode"),
        (
            ["tls.gateway.mode=own", "tls.gateway.key=/k"],
            "tls.gateway.key = /k: has no effect where mode is own, not files",
        ),
        (["tls.gateway.mode=on"], "tls.gateway.mode = true: should be 'off', 'own' or 'files'"),
        (["tls.cluster.key=/k"], "tls.cluster.certificate = null: certificate and key are given"),
        (["tls.cluster.enable=true"], "tls.cluster.enable (did you mean tls.cluster.enabled?)"),
    ],
)
def test_what_would_have_no_effect_or_no_meaning(settings: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tls(*settings)
    assert sentence in str(caught.value)


def test_files_of_a_node_the_gateway_and_the_ca() -> None:
    made = tls("tls.cluster.folder=/c", "tls.gateway.mode=own")
    assert made.cluster.ca_path == Path("/c/ca.pem")
    assert made.cluster.paths_of("mini1") == (Path("/c/mini1.pem"), Path("/c/mini1.key"))
    assert made.gateway_paths() == (Path("/c/gateway.pem"), Path("/c/gateway.key"))
    given = tls(
        "tls.cluster.ca=/a", "tls.cluster.certificate=/b", "tls.cluster.key=/d",
        "tls.gateway.mode=files", "tls.gateway.certificate=~/e", "tls.gateway.key=/f",
    )  # fmt: skip
    assert given.cluster.ca_path == Path("/a")
    assert given.cluster.paths_of("mini1") == (Path("/b"), Path("/d"))
    assert given.gateway_paths() == (Path("~/e").expanduser(), Path("/f"))


def test_nodes_have_files_of_their_own_and_the_rest_alike() -> None:
    def digest(*settings: str) -> str:
        return settings_digests(load(None, {}, settings).config)["tls"]

    cluster = "tls.cluster.enabled=true"
    assert digest(cluster) != digest()
    assert digest(cluster) == digest(cluster, "tls.cluster.folder=/elsewhere")
    assert digest(cluster, "tls.tensors=true") != digest(cluster)
