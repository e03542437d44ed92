#!/usr/bin/env python3
"""Write a model folder with random weights, to measure sizes that nobody wants to download.

    python scripts/random_model.py FOLDER --layers 28 --hidden 1536 --dtype bfloat16

The architecture is qwen2 with an untied head.  What it says is nonsense; how long it takes is not.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models import qwen2
from mlx_lm.utils import save_config, save_model

from benchlib.options import positive
from benchlib.targets import demo_model
from config import program

HEAD_DIM = 64
GROUP_SIZE = 64
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--layers", type=positive, default=28)
    parser.add_argument("--hidden", type=positive, default=1536, help=f"a multiple of {HEAD_DIM}")
    parser.add_argument("--intermediate", type=positive, default=8960)
    parser.add_argument("--vocab", type=positive, default=151_936)
    parser.add_argument("--context", type=positive, default=32_768)
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="bfloat16")
    parser.add_argument("--bits", type=int, choices=(4, 8), help="quantize the weights")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="its model's; default: the demo model's"
    )
    args = parser.parse_args()
    if args.hidden % HEAD_DIM:
        parser.error(f"--hidden {args.hidden} is no multiple of {HEAD_DIM}")
    write(args)
    return 0


def write(args: argparse.Namespace) -> None:
    """Make the model layer by layer of its own initialisation, and save it as mlx-lm does."""
    config = {
        "model_type": "qwen2",
        "hidden_size": args.hidden,
        "num_hidden_layers": args.layers,
        "intermediate_size": args.intermediate,
        "num_attention_heads": args.hidden // HEAD_DIM,
        "num_key_value_heads": max(1, args.hidden // HEAD_DIM // 6),
        "rms_norm_eps": 1e-6,
        "vocab_size": args.vocab,
        "max_position_embeddings": args.context,
        "rope_theta": 1_000_000.0,
        "tie_word_embeddings": False,
        "eos_token_id": args.vocab - 1,
    }
    while config["num_attention_heads"] % config["num_key_value_heads"]:
        config["num_key_value_heads"] -= 1
    model = qwen2.Model(qwen2.ModelArgs.from_dict(config))
    dtype = getattr(mx, args.dtype)
    model.update(tree_map(lambda weights: weights.astype(dtype), model.parameters()))
    if args.bits:
        nn.quantize(model, GROUP_SIZE, args.bits)
        config["quantization"] = {"group_size": GROUP_SIZE, "bits": args.bits}
    args.folder.mkdir(parents=True, exist_ok=True)
    save_model(args.folder, model, donate_model=True)
    save_config(config, args.folder / "config.json")
    source = args.tokenizer or demo_model()
    for name in TOKENIZER:
        shutil.copyfile(source / name, args.folder / name)


if __name__ == "__main__":
    sys.exit(program.run(main))
