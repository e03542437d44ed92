"""Compare grammar libraries as the last stage uses them: time to compile, time per mask, what they enforce.

    python scripts/bench_grammar.py --libraries llguidance xgrammar outlines_core

Libraries that are not installed are left out.  The larger vocabulary is the demo model's with pairs of its
tokens added, up to the size of the vocabularies of larger models.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from benchlib.report import add_output_arguments, check_output, write_json
from config import program
from pipeline.demo_model import ensure_demo_model

LARGE = 152_000
ROUNDS = 5

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"type": "string"}},
        "home": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string"}},
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "home"],
    "additionalProperties": False,
}
SOMEBODY = {
    "name": "Marie Curie",
    "age": 66,
    "tags": ["physics", "chemistry", "the only one with two prizes in two sciences"],
    "home": {"street": "Rue Pierre et Marie Curie", "zip": "75005"},
}
TREE: dict[str, Any] = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value", "children"],
            "additionalProperties": False,
        }
    },
}

NULL = {"type": "null"}

# Name, schema, an instance that fits, one that does not.
FEATURES: list[tuple[str, dict[str, Any], Any, Any]] = [
    ("types", {"type": "integer"}, 12, "x"),
    ("enum", {"enum": ["a", 1, None]}, "a", "b"),
    ("const", {"const": {"a": [1]}}, {"a": [1]}, {"a": [2]}),
    ("required", PERSON, SOMEBODY, {"name": "x"}),
    ("optional properties", {**PERSON, "required": ["age"]}, {"age": 1}, {"name": "x"}),
    ("recursion", TREE, {"value": 1, "children": [{"value": 2, "children": []}]}, {"value": 1}),
    ("anyOf", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None, "x"),
    ("allOf", {"allOf": [{"type": "integer"}, {"minimum": 5}]}, 7, 3),
    ("pattern", {"type": "string", "pattern": "^[a-c]+$"}, "abc", "abd"),
    ("format", {"type": "string", "format": "date"}, "2026-01-31", "soon"),
    ("minLength", {"type": "string", "minLength": 2, "maxLength": 3}, "ab", "a"),
    ("minimum", {"type": "integer", "minimum": 5, "maximum": 120}, 66, 130),
    ("minItems", {"type": "array", "items": {"type": "integer"}, "minItems": 2}, [1, 2], [1]),
    ("prefixItems", {"type": "array", "prefixItems": [{"type": "null"}], "items": False}, [None], [1]),
    ("additionalProperties", {"type": "object", "additionalProperties": NULL}, {"a": None}, {"a": 1}),
    ("patternProperties", {"type": "object", "patternProperties": {"^x": NULL}}, {"x": None}, {"x": 1}),
]  # fmt: skip


class Matcher(Protocol):
    def mask(self) -> None: ...

    def accept(self, token: int) -> bool: ...

    def may_end(self) -> bool: ...


Compile = Callable[[dict[str, Any]], Matcher]


def llguidance_(tokenizer: PreTrainedTokenizerFast, added: Sequence[str]) -> Compile:
    import numpy as np
    from llguidance import LLMatcher, LLTokenizer

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {word: len(tokenizer) + place for place, word in enumerate(added)}
    tokens = LLTokenizer(json.dumps(content), eos_token=tokenizer.eos_token_id)
    words = np.zeros(-(-tokens.vocab_size // 32), np.uint32)

    class Made:
        def __init__(self, schema: dict[str, Any]) -> None:
            grammar = LLMatcher.grammar_from_json_schema(schema)
            self._matcher = LLMatcher(tokens, grammar, log_level=0)
            if self._matcher.is_error():
                raise ValueError(self._matcher.get_error())

        def mask(self) -> None:
            self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)

        def accept(self, token: int) -> bool:
            return self._matcher.consume_token(token)

        def may_end(self) -> bool:
            return self._matcher.is_accepting()

    return Made


def xgrammar_(tokenizer: PreTrainedTokenizerFast, added: Sequence[str]) -> Compile:
    import xgrammar

    words = [*_words(tokenizer), *added]
    info = xgrammar.TokenizerInfo(
        words,
        vocab_type=xgrammar.VocabType.BYTE_LEVEL,
        stop_token_ids=[tokenizer.eos_token_id],
    )
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    bits = xgrammar.allocate_token_bitmask(1, info.vocab_size)

    class Made:
        def __init__(self, schema: dict[str, Any]) -> None:
            compiled = compiler.compile_json_schema(json.dumps(schema), strict_mode=False)
            self._matcher = xgrammar.GrammarMatcher(compiled)

        def mask(self) -> None:
            self._matcher.fill_next_token_bitmask(bits)

        def accept(self, token: int) -> bool:
            return bool(self._matcher.accept_token(token))

        def may_end(self) -> bool:
            return bool(self._matcher.accept_token(tokenizer.eos_token_id))

    return Made


def outlines_core_(tokenizer: PreTrainedTokenizerFast, added: Sequence[str]) -> Compile:
    import outlines_core
    from outlines_core import json_schema

    end = tokenizer.eos_token_id
    words = {w: [n] for n, w in enumerate([*_words(tokenizer), *added]) if n != end}
    readable = {_spelled(word): number for word, number in words.items()}
    vocabulary = outlines_core.Vocabulary(end, readable)

    class Made:
        def __init__(self, schema: dict[str, Any]) -> None:
            pattern = json_schema.build_regex_from_schema(json.dumps(schema))
            self._guide = outlines_core.Guide(outlines_core.Index(pattern, vocabulary))

        def mask(self) -> None:
            self._guide.get_tokens()

        def accept(self, token: int) -> bool:
            if not self._guide.accepts_tokens([token]):
                return False
            self._guide.advance(token, return_tokens=False)
            return True

        def may_end(self) -> bool:
            return bool(self._guide.is_finished())

    return Made


LIBRARIES: dict[str, Callable[[PreTrainedTokenizerFast, Sequence[str]], Compile]] = {
    "llguidance": llguidance_,
    "xgrammar": xgrammar_,
    "outlines_core": outlines_core_,
}


def _words(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    return [str(tokenizer.convert_ids_to_tokens(n)) for n in range(len(tokenizer))]


def _spelled(word: str) -> str:
    """A token of byte-level BPE as the text that it stands for, as far as it is one."""
    return word.replace("Ġ", " ").replace("Ċ", "\n").replace("ĉ", "\t")


def more_words(tokenizer: PreTrainedTokenizerFast, size: int) -> list[str]:
    """Pairs of tokens that make one of a usual length."""
    short = [w for w in _words(tokenizer)[300:] if 3 <= len(w) <= 6 and w.isascii()]
    known = set(_words(tokenizer))
    pairs = (a + b for b, a in itertools.product(short, short) if a + b not in known)
    fresh: dict[str, None] = {}
    while len(fresh) < size - len(tokenizer):
        fresh[next(pairs)] = None
    return list(fresh)


def measure(build: Callable[[], Compile], tokens: list[int]) -> dict[str, float]:
    """Seconds and milliseconds of one library with one vocabulary."""
    started = time.perf_counter()
    make = build()
    loaded = time.perf_counter()
    make(PERSON)
    compiled = time.perf_counter()
    masks: list[float] = []
    for _ in range(ROUNDS):
        matcher = make(PERSON)
        for token in tokens:
            before = time.perf_counter()
            matcher.mask()
            masks.append(time.perf_counter() - before)
            if not matcher.accept(token):
                raise ValueError(f"the instance is refused at token {token}")
    return {
        "load_s": loaded - started,
        "compile_ms": 1e3 * (compiled - loaded),
        "mask_mean_ms": 1e3 * statistics.fmean(masks),
        "mask_p99_ms": 1e3 * statistics.quantiles(masks, n=100)[98],
    }


def covered(make: Compile, tokenizer: PreTrainedTokenizerFast) -> dict[str, bool]:
    """Which features of JSON schema are enforced: the good instance passes, the bad one does not."""

    def accepts(schema: dict[str, Any], value: Any) -> bool:
        matcher = make(schema)
        tokens = tokenizer.encode(json.dumps(value), add_special_tokens=False)
        return all(matcher.accept(token) for token in tokens) and matcher.may_end()

    def enforced(schema: dict[str, Any], good: Any, bad: Any) -> bool:
        try:
            return accepts(schema, good) and not accepts(schema, bad)
        except (ValueError, RuntimeError, TypeError):  # as the libraries refuse a schema
            return False

    return {name: enforced(*each) for name, *each in FEATURES}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    add_output_arguments(parser)
    options = parser.parse_args()
    check_output(parser, options)
    tokenizer = AutoTokenizer.from_pretrained(ensure_demo_model())
    tokens = tokenizer.encode(json.dumps(SOMEBODY), add_special_tokens=False)
    results: dict[str, Any] = {}
    for name in options.libraries:
        if importlib.util.find_spec(name) is None:
            print(f"{name}: not installed")
            continue
        results[name] = {}
        for size in (len(tokenizer), LARGE):
            added = more_words(tokenizer, size)
            figures = measure(partial(LIBRARIES[name], tokenizer, added), tokens)
            results[name][size] = figures
            shown = "  ".join(f"{key} {value:.3f}" for key, value in figures.items())
            print(f"{name:14} {size:7} tokens  {shown}", flush=True)
        features = covered(LIBRARIES[name](tokenizer, ()), tokenizer)
        results[name]["features"] = features
        missing = [feature for feature, there in features.items() if not there]
        print(f"{name:14} {sum(features.values())} of {len(features)} features; not: {missing}")
    write_json(options, grammar=results)


if __name__ == "__main__":
    sys.exit(program.run(main))
