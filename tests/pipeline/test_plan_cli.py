from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.plan.__main__ import main
from tests.pipeline.tiny_models import LLAMA, make_folder


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder with 4 layers, and a configuration of two nodes in the working directory."""
    directory = tmp_path / "config"
    directory.mkdir()
    (directory / "nodes.yaml").write_text(
        "nodes:\n"
        "  left: {node_id: 0, host: left.local, ports: [8100, 8101, 8102], memory: 16GB}\n"
        "  right: {node_id: 1, host: right.local, ports: [8200, 8201, 8202], speed: 3.0}\n"
    )
    monkeypatch.chdir(tmp_path)
    return str(make_folder(tmp_path / "tiny", LLAMA | {"tie_word_embeddings": False}))


def layers(output: str) -> dict[str, str]:
    """Node -> layers, from the lines below the heading."""
    rows = [line.split() for line in output.splitlines()[2:]]
    return {row[0]: row[1] for row in rows}


def test_nodes_of_the_command_line(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", model, "--nodes", "a:16GB:1.0,b:16GB,c:1GiB:5"]) == 0
    assert layers(capsys.readouterr().out) == {"a": "0", "b": "1", "c": "2-3"}


def test_nodes_of_the_configuration(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", model, "--config", "config"]) == 0
    assert layers(capsys.readouterr().out) == {"left": "0", "right": "1-3"}


@pytest.mark.parametrize(
    ("share", "rows"),
    [
        ("0", [["a", "0-2", "49.4%", "75.0%"], ["b", "3", "50.6%", "25.0%"]]),
        ("1", [["a", "0-1", "32.9%", "50.0%"], ["b", "2-3", "67.1%", "50.0%"]]),
    ],
)
def test_it_says_what_the_stages_are_balanced_for_and_what_comes_of_it(
    share: str, rows: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_folder(tmp_path / "tiny", LLAMA | {"vocab_size": 600})
    setting = f"cluster.prefill_share={share}"
    assert main(["--model", str(model), "--nodes", "a,b", "--set", setting]) == 0
    title, headings, *lines = capsys.readouterr().out.splitlines()
    assert f"balanced for a prefill_share of {share}," in title
    assert headings.split()[4:6] == ["decode", "prefill"]
    words = [line.split() for line in lines]
    assert [[row[0], row[1], row[5], row[6]] for row in words] == rows


def test_explicit_ranges_of_the_configuration(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config" / "models.yaml").write_text(
        f"default_model: tiny\nmodels:\n  tiny:\n    source: {model}\n    sharding:\n"
        "      left: {layers: [0, 2]}\n      right: {layers: [3, 3]}\n"
    )
    assert main(["--config", "config"]) == 0
    output = capsys.readouterr().out
    assert layers(output) == {"left": "0-2", "right": "3"}
    assert "4 layers, as configured," in output


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ("a:1x,b", "--nodes: '1x' of a is not a size"),
        ("a:1GB:0", "--nodes: '0' of a is not a speed above 0"),
        ("a:1GB:fast", "--nodes: 'fast' of a is not a speed above 0"),
        ("a:1GB:nan", "--nodes: 'nan' of a is not a speed above 0"),
        ("a:1GB:1:1", "--nodes: 'a:1GB:1:1' is not NAME"),
        ("a,,b", "--nodes: '' is not NAME"),
        ("", "--nodes names no node"),
        (" ", "--nodes names no node"),
        ("a,b,c,d,e", "5 nodes are more than the 4 layers"),
        ("a:20KB,b:20KB", "use more or larger nodes"),
    ],
)
def test_what_can_not_be_planned_is_one_sentence(
    nodes: str, message: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", model, "--nodes", nodes]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.count("\n") == 1


def test_a_missing_model_is_one_sentence(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "./nowhere", "--nodes", "a"]) == 2
    assert "no model folder ./nowhere" in capsys.readouterr().err
