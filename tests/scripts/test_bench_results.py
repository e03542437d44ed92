"""From measurements to medians, tables, files and plots."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

import bench_idle
import bench_link
import bench_memory
import bench_prefill
import bench_serving
from benchlib.hop import Exchange
from benchlib.options import run_rounds
from benchlib.prompts import PromptMaker
from benchlib.report import Column, check_output, table, write_json
from benchlib.servers import ServerFailed
from benchlib.stats import median, medians_by, percentiles, ratio
from benchlib.targets import Target
from tests.scripts.fake_api import Handler, complete, serving

# numbers


def test_percentiles_are_interpolated() -> None:
    found = percentiles([float(n) for n in range(101)], "x")
    assert found == {"x_p50": 50.0, "x_p95": 95.0, "x_p99": 99.0}
    assert percentiles([1.0, 2.0], "x")["x_p50"] == 1.5
    assert percentiles([], "x") == {"x_p50": None, "x_p95": None, "x_p99": None}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1))
def test_percentiles_lie_within_the_values(values: list[float]) -> None:
    p50, p95, p99 = (float(v) for v in percentiles(values, "x").values() if v is not None)
    assert min(values) <= p50 <= p95 <= p99 <= max(values)


def test_what_is_missing_stays_missing() -> None:
    assert median([3.0, None, 1.0]) == 2.0
    assert median([None]) is None
    assert ratio(3.0, 2.0) == 1.5
    assert (ratio(None, 2.0), ratio(3.0, None), ratio(3.0, 0.0)) == (None, None, None)


def test_medians_of_the_rows_that_agree() -> None:
    rows: list[dict[str, Any]] = [
        {"server": name, "round": number, "x": x, "y": y, "errors": {}}
        for name, number, x, y in [("a", 0, 1, None), ("a", 1, 3, 5.0), ("b", 0, 7, None)]
    ]
    assert medians_by(rows, "server") == [
        {"server": "a", "x": 2, "y": 5.0},
        {"server": "b", "x": 7, "y": None},
    ]


# prompts


def words() -> Tokenizer:
    """A tokenizer with one token for each word."""
    text = " ".join(PromptMaker().prompt(seed, 600) for seed in range(20)).split()
    ids = {word: number for number, word in enumerate(dict.fromkeys([*text, "?"]))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


@pytest.mark.parametrize("length", [1, 48, 300])
def test_a_prompt_has_the_wanted_length_and_repeats(length: int) -> None:
    tokenizer = words()
    maker = PromptMaker(tokenizer)
    assert len(tokenizer.encode(maker.prompt(5, length)).ids) == length
    assert maker.prompt(5, length) == PromptMaker(tokenizer).prompt(5, length)


def test_prompts_of_different_seeds_part_at_once() -> None:
    beginnings = {" ".join(PromptMaker().prompt(seed, 40).split()[:2]) for seed in range(50)}
    assert len(beginnings) == 50


# tables and files


def test_a_table_is_aligned() -> None:
    columns = [Column("name", "name"), Column("x", "x ms"), Column("n", "n", "d")]
    rows: list[dict[str, Any]]
    rows = [{"name": "a", "x": 1.25, "n": 10}, {"name": "long", "x": None, "n": 7}]
    assert table(columns, rows).splitlines() == [
        "name  x ms   n",
        "a      1.2  10",
        "long     -   7",
    ]


def test_json_has_arguments_and_machine(tmp_path: Path) -> None:
    args = argparse.Namespace(
        json=tmp_path / "out.json", plot=None, ranks=2, targets=[Target("ours", 2)]
    )
    write_json(args, benchmark="x", rounds=[{"a": 1}])
    content = json.loads(args.json.read_text())
    assert content["arguments"] == {"ranks": 2, "targets": ["ours:2"]}
    assert content["rounds"] == [{"a": 1}]
    assert content["machine"]["cores"] >= 1


def test_a_file_without_a_folder_is_refused_before_the_run(tmp_path: Path) -> None:
    args = argparse.Namespace(json=tmp_path / "none" / "out.json", plot=None)
    with pytest.raises(SystemExit):
        check_output(argparse.ArgumentParser(), args)


def test_rounds_before_a_failed_one_are_reported() -> None:
    def one_round(number: int) -> list[dict[str, Any]]:
        if number == 2:
            raise ServerFailed("it did not start")
        return [{"x": 10 * number}]

    reported: list[tuple[list[dict[str, Any]], str]] = []
    with pytest.raises(ServerFailed):
        run_rounds(5, one_round, lambda rows, of_what: reported.append((rows, of_what)))
    rows = [{"x": 0, "round": 0}, {"x": 10, "round": 1}]
    assert reported == [(rows, "medians of 2 rounds")]


# each benchmark's own numbers


def serving_row(level: str, server: str, number: int, rate: float | None) -> dict[str, Any]:
    numbers = dict.fromkeys(("first_token_ms_p50", "inter_token_ms_p95"), 1.0)
    counts = {"requests": 8.0, "failed": 0.0 if rate else 8.0, "short": 1.0}
    return {
        "level": level, "server": server, "round": number, "tokens_per_s": rate, "errors": {},
        **numbers, **counts,
    }  # fmt: skip


def test_the_ratio_is_of_runs_of_the_same_round() -> None:
    rates = [(10.0, 5.0, None), (30.0, 10.0, None), (20.0, 4.0, None)]
    rows = [
        serving_row(level, server, number, rate)
        for number, round_rates in enumerate(rates)
        for level in ("1", "4")
        for server, rate in zip(("ours", "other", "broken"), round_rates, strict=True)
    ]
    lines = {(line["level"], line["server"]): line for line in bench_serving.summarize(rows)}
    assert lines["1", "ours"]["ratio"] == 1.0
    assert lines["4", "other"]["ratio"] == 3.0  # of 2, 3 and 5; of the medians it would be 4
    assert lines["4", "other"]["tokens_per_s"] == 5.0
    assert lines["4", "broken"]["ratio"] is None
    assert (lines["4", "broken"]["failed"], lines["4", "broken"]["requests"]) == (24, 24)


def test_time_of_a_tensor_is_without_the_frames() -> None:
    hops = [
        [
            Exchange(0, "frame", 100, (20e-6, 20e-6, 20e-6)),
            Exchange(0, "frame", 900, (25e-6, 25e-6, 25e-6)),
            Exchange(0, "tensor", 4000, (60e-6, 60e-6, 60e-6)),
        ],
        [Exchange(1, "frame", 100, (30e-6,)), Exchange(1, "tensor", 4000, (30e-6,))],
    ]
    rows = bench_link.rows_of(hops)
    assert [row["hop"] for row in rows] == ["0 to 1"] * 3 + ["1 to 0"] * 2
    assert [row["us_p50"] for row in rows] == pytest.approx([10, 15, 40, 15, 0])
    assert rows[0]["mb_per_s"] is None
    assert rows[2]["mb_per_s"] == pytest.approx(100.0)
    assert rows[4]["mb_per_s"] is None


def test_prefill_is_compared_with_the_same_round_and_length() -> None:
    rows = [
        {"server": server, "round": number, "length": 128, "first_token_s": seconds}
        for server, number, seconds in [
            ("ours", 0, 1.0), ("mlx_lm.server", 0, 2.0), ("ours", 1, 1.0), ("mlx_lm.server", 1, 4.0)
        ]
    ]  # fmt: skip
    bench_prefill.add_ratios(rows)
    assert [row["ratio"] for row in rows] == [0.5, 1.0, 0.25, 1.0]


def test_every_benchmark_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [serving_row("1", "ours", 0, 3.0), serving_row("1", "broken", 0, None)]
    bench_serving.draw(bench_serving.summarize(rows), tmp_path / "serving.png")
    lengths = [
        {"server": "ours", "prompt_tokens": 5, "first_token_s": 1.0, "tokens_per_s": 5.0},
        {"server": "ours", "prompt_tokens": 9, "first_token_s": 1.0, "tokens_per_s": 9.0},
    ]
    bench_prefill.draw(lengths, tmp_path / "prefill.png")
    cores = [{"server": "ours", "process": name, "cores": 0.1} for name in ("rank 0", "all")]
    bench_idle.draw(cores, tmp_path / "idle.png")
    sizes = dict.fromkeys(("layers_mb", "held_mb", "idle_mb", "peak_mb"), 5.0)
    bench_memory.draw([{"rank": 0, **sizes}], tmp_path / "memory.png")
    hops = [[Exchange(0, "frame", 9, (1e-6,)), Exchange(0, "tensor", 4000, (5e-6,))]]
    bench_link.draw(bench_link.rows_of(hops), tmp_path / "link.png")
    assert len([p for p in tmp_path.iterdir() if p.read_bytes().startswith(b"\x89PNG")]) == 5


# a whole run


def test_a_running_server_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(handler: Handler) -> None:
        if "Log 1001" in handler.body["prompt"]:
            handler.begin(503)
        else:
            complete(handler)

    out = tmp_path / "out.json"
    with serving(answer) as server:
        arguments = ["bench_serving.py", "--url", f"{server.url}/v1/", "--served-model", "m"]
        arguments += ["--concurrency", "2", "--rate", "500", "--requests", "6", "--rounds", "2"]
        monkeypatch.setattr("sys.argv", [*arguments, "--json", str(out)])
        bench_serving.main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("2 at a time") for line in lines)
    content = json.loads(out.read_text())
    assert [row["requests"] for row in content["summary"]] == [12, 12]
    failed = {row["level"]: row["failed"] for row in content["summary"]}
    assert failed == {"2 at a time": 0, "500/s": 1}
    assert [row["tokens"] for row in content["rounds"]] == [6 * 48, 5 * 48, 6 * 48, 6 * 48]
    prompts = [body["prompt"] for body in server.bodies if body["prompt"].startswith("Log")]
    assert len(prompts) == len(set(prompts)) == 24
