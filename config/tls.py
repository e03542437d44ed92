"""TLS: what is protected, and by which files.  Whether these fit is checked by server.tls at the start."""

from __future__ import annotations

import os.path
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from config.errors import InvalidSetting
from config.section import Section
from config.values import Auto, Flag, Text

FilePath = Annotated[Text, AfterValidator(os.path.expanduser)]

DEFAULT_FOLDER = "~/.config/mlx-cluster/tls"

CA, GATEWAY, LAUNCHER = "ca", "gateway", "launcher"
"""Names of files in the folder, which are therefore no names of nodes."""


def _off(value: object) -> object:
    """YAML reads `off` as false."""
    return "off" if value is False else value


class GatewayTlsConfig(Section):
    mode: Annotated[Literal["off", "own", "files"], BeforeValidator(_off)] = Field(
        default="off",
        description="Whether the OpenAI API is served by TLS: off; own, with the certificate of `scripts/certs "
        "gateway`; files, with the given certificate and key.  Changed files are taken over without a restart.",
    )
    certificate: Auto[FilePath] = Field(
        default=None,
        description="With mode files: PEM file of the certificate, intermediate ones after it.",
    )
    key: Auto[FilePath] = Field(
        default=None, description="With mode files: PEM file of its key, without a password."
    )

    @model_validator(mode="after")
    def _check(self) -> GatewayTlsConfig:
        for name in ("certificate", "key"):
            given = getattr(self, name) is not None
            if self.mode == "files" and not given:
                raise InvalidSetting((name,), "has to be given where mode is files")
            if self.mode != "files" and given:
                raise InvalidSetting((name,), f"has no effect where mode is {self.mode}, not files")
        return self


class ClusterTlsConfig(Section):
    enabled: Flag = Field(
        default=False,
        description="Whether the nodes speak to each other by mutual TLS alone: coordinator, frame links, "
        "and the inference and health ports, which then want a certificate of the cluster from everybody.",
    )
    folder: FilePath = Field(
        default=os.path.expanduser(DEFAULT_FOLDER),
        description="Folder of certificates and keys, as scripts/certs writes them; of each node its own.",
    )
    ca: Auto[FilePath] = Field(
        default=None, description="Certificate of the cluster's CA; auto: ca.pem in the folder."
    )
    certificate: Auto[FilePath] = Field(
        default=None,
        description="Certificate of this node; auto: <node name>.pem in the folder.",
    )
    key: Auto[FilePath] = Field(
        default=None, description="Key of this node; auto: <node name>.key in the folder."
    )

    @model_validator(mode="after")
    def _check(self) -> ClusterTlsConfig:
        if (self.certificate is None) != (self.key is None):
            missing = "key" if self.key is None else "certificate"
            raise InvalidSetting((missing,), "certificate and key are given together or not at all")
        return self

    @property
    def ca_path(self) -> Path:
        """The certificate of the CA."""
        return Path(self.ca) if self.ca else certificate_path(Path(self.folder), CA)

    def paths_of(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of a node, the gateway or the launcher."""
        if self.certificate and self.key and name not in (GATEWAY, LAUNCHER):
            return Path(self.certificate), Path(self.key)
        return certificate_path(Path(self.folder), name), key_path(Path(self.folder), name)


class TlsConfig(Section):
    gateway: GatewayTlsConfig = Field(
        default=GatewayTlsConfig(), description="Between clients and the OpenAI API."
    )
    cluster: ClusterTlsConfig = Field(
        default=ClusterTlsConfig(),
        description="Between the nodes, and between them and the launcher.",
    )
    tensors: Flag = Field(
        default=False,
        description="Whether the hidden states travel between the nodes inside TLS too; needs cluster.enabled "
        "and the ring backend.",
    )

    @model_validator(mode="after")
    def _check(self) -> TlsConfig:
        if self.tensors and not self.cluster.enabled:
            raise InvalidSetting(
                ("tensors",), "needs tls.cluster.enabled, whose certificates it uses"
            )
        return self

    def gateway_paths(self) -> tuple[Path, Path] | None:
        """Certificate and key of the gateway; None where it is served without TLS."""
        if self.gateway.mode == "off":
            return None
        if self.gateway.certificate and self.gateway.key:
            return Path(self.gateway.certificate), Path(self.gateway.key)
        return self.cluster.paths_of(GATEWAY)


def certificate_path(folder: Path, name: str) -> Path:
    """Where scripts/certs keeps the certificate of `name`."""
    return folder / f"{name}.pem"


def key_path(folder: Path, name: str) -> Path:
    """Where scripts/certs keeps the key of `name`."""
    return folder / f"{name}.key"
