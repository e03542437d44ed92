from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "gen_proto.py"


@pytest.fixture
def gen_proto() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_proto", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_checked_in_stubs_match_the_proto_file(gen_proto: ModuleType) -> None:
    assert gen_proto.outdated() == []


def test_a_changed_proto_file_is_noticed(
    gen_proto: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (gen_proto.PROTO, *gen_proto.GENERATED):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(gen_proto.ROOT / path, tmp_path / path)
    proto = tmp_path / gen_proto.PROTO
    proto.write_text(proto.read_text().replace("uint32 pid = 6", "uint64 pid = 6"))
    monkeypatch.setattr(gen_proto, "ROOT", tmp_path)
    assert gen_proto.outdated() == [gen_proto.GENERATED[0]]
    proto.write_text(proto.read_text().replace("rpc GetStatus(", "rpc ShowStatus("))
    assert gen_proto.outdated() == list(gen_proto.GENERATED)
