"""A folder of YAML files for one test."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

NODES = """\
    nodes:
      left:
        node_id: 0
        host: left.local
        ports: [8100, 8101, 8102]
      right:
        node_id: 1
        host: right.local
        ports: [8200, 8201, 8202]
"""

MODELS = """\
    default_model: big-1.5b
    models:
      big-1.5b:
        source: owner/name
        sharding:
          node_0: {layers: [0, 9], estimated_memory: 2.5GB}
          right: {layers: [10, 18]}
"""


def write_folder(folder: Path, **files: str) -> Path:
    """`cluster="text"` becomes cluster.yaml; cluster.yaml is always there."""
    folder.mkdir(exist_ok=True)
    for name, text in {"cluster": "", **files}.items():
        (folder / f"{name}.yaml").write_text(dedent(text), encoding="utf-8")
    return folder
