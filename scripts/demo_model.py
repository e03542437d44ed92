#!/usr/bin/env python3
"""Make the demo model (SmolLM2-135M-Instruct) once and print the folder it is in."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    # Ctrl-C during the imports, which take a second or two, ends this process as quietly as any other program.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import os
import sys
from typing import NoReturn

import mlx.core as mx

import config
from config import program
from pipeline.demo_model import Variant, demo_model_path, ensure_demo_model
from pipeline.errors import ModelError


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--for-server"]:
        return make_for_server(arguments[1:])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quantized", action=argparse.BooleanOptionalAction, default=None)
    parser.add_argument("--as", dest="architecture", choices=("llama", "qwen2"), default="llama")
    parser.add_argument("--files", type=int, default=1, metavar="N", help="weight files to write")
    parser.add_argument("--print-path", action="store_true", help="print the folder, make nothing")
    parser.add_argument(
        "--for-server",
        nargs=argparse.REMAINDER,
        metavar="ARGUMENT",
        help="make it only if a server started with these arguments would serve it; comes first",
    )
    args = parser.parse_args(arguments)
    if args.files < 1:
        parser.error(f"--files must be at least 1, not {args.files}")
    quantized = args.quantized
    if quantized is None:
        quantized = Variant.for_this_machine().quantized
    variant = Variant(quantized, args.architecture, args.files)
    if args.print_path:
        print(demo_model_path(variant))
        return 0
    return make(variant)


def make(variant: Variant) -> int:
    if not variant.quantized:
        # Dequantizing alone needs no accelerator, and a CPU is always there.
        mx.set_default_device(mx.cpu)
    try:
        print(ensure_demo_model(variant, lambda line: print(line, file=sys.stderr, flush=True)))
    except ModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


class _ServerParser(argparse.ArgumentParser):
    """Says one sentence of an error: ./scripts/serve has options of its own, which a usage here would hide."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see ./scripts/serve --help)\n")


def make_for_server(arguments: list[str]) -> int:
    parser = _ServerParser(prog="./scripts/serve", add_help=False)
    config.add_arguments(parser)
    try:
        settings = config.from_arguments(parser.parse_args(arguments), os.environ)
    except config.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if settings.config.model.source != "demo":
        return 0
    return make(Variant.for_this_machine())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(program.run(main))
