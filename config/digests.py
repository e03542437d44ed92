"""What must be configured alike on all nodes, as one short digest for each section."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from config.schema import Config
from config.sources import FILES

SHARED = ("cluster", "coordinator", "api_gateway", "scheduler", "network", "nodes", "access", "tls")

# A node may listen on an address of its own, and keep the model and other files in folders of its own.
OWN_MATTERS: dict[str, dict[str, Any]] = {
    "api_gateway": {"host": True},
    "access": dict.fromkeys(("keys_file", "cluster_secret_file", "audit", "front_door"), True),
    "tls": {
        "gateway": dict.fromkeys(("certificate", "key"), True),
        "cluster": dict.fromkeys(("folder", "ca", "certificate", "key"), True),
    },
}
OWN_MATTERS_OF_THE_MODEL = frozenset({"source"})


def settings_digests(config: Config) -> dict[str, str]:
    """Section name to digest: equal on nodes that can work together.

    Of the models only the served one counts, without its name and source: whether the files are the same is
    told by their fingerprint.  Of the nodes only those that take part count, where a launcher says which do:
    one that was added on its Mac only is no reason to end the others.
    """
    sections: dict[str, Any] = config.model_dump(
        mode="json", include=set(SHARED), exclude=OWN_MATTERS
    )
    if config.launcher.supervised:
        sections["nodes"] = {name: sections["nodes"][name] for name in config.cluster.ranks}
    sections["models"] = config.model.model_dump(mode="json", exclude=set(OWN_MATTERS_OF_THE_MODEL))
    return {name: _digest(content) for name, content in sections.items()}


def file_of(section: str) -> str:
    """The file in which it stands."""
    return next(name for name, sections in FILES.items() if section in sections)


def _digest(content: object) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
