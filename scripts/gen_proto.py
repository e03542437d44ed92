"""Regenerate the gRPC stubs of server/rpc/cluster.proto; with --check only test them.

Needs grpcio-tools (in the `test` extra).  The comparison looks at the descriptors and the method
paths, not at the text, because every release of grpcio-tools words the files a little differently.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

from config import program

ROOT = Path(__file__).resolve().parent.parent
# Relative to ROOT: protoc derives the import `server.rpc.cluster_pb2` from it.
PROTO = Path("server/rpc/cluster.proto")
GENERATED = (PROTO.with_name("cluster_pb2.py"), PROTO.with_name("cluster_pb2_grpc.py"))

_MEANING = re.compile(
    r"AddSerializedFile\(.*?\)$|'/mlx_cluster\.v1\.Coordinator/\w+'|^from server.*$", re.MULTILINE
)


def generate(out: Path) -> None:
    """Write both stubs below `out`; raises RuntimeError when protoc refuses the proto file."""
    arguments = [
        "protoc",
        f"-I{ROOT}",
        f"-I{Path(protoc.__file__).parent / '_proto'}",
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        str(ROOT / PROTO),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError(f"protoc can't compile {PROTO}")


def meaning(stub: Path) -> list[str]:
    """The parts of a stub that follow from the proto file, whatever tool version made it."""
    return _MEANING.findall(stub.read_text(encoding="utf-8"))


def outdated() -> list[Path]:
    """The checked-in stubs that no longer match the proto file."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        return [
            stub
            for stub in GENERATED
            if not (ROOT / stub).exists() or meaning(ROOT / stub) != meaning(Path(folder) / stub)
        ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 if outdated")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    stale = outdated()
    for stub in stale:
        print(f"{stub} is outdated: run python scripts/gen_proto.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(program.run(main))
