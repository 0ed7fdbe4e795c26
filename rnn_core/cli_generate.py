"""rnn-core generate: text from a trained model, character by character."""

from __future__ import annotations

import argparse
import sys

from rnn_core import config
from rnn_core.charlm import CharLM
from rnn_core.run import model_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the options, which are CharLM.generate's."""
    parser.add_argument("model", metavar="MODEL", help="a model that train wrote; the ending may be left out")
    parser.add_argument("--prompt", default="", help="text to go on from (default: the start of a line)")
    parser.add_argument("--length", type=int, default=1000, metavar="N", help="how many characters (default 1000)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="X",
        help="below 1 safer text, above 1 wilder, 0 always the likeliest character (default 1)",
    )  # fmt: skip
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest characters only")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed writes the same text")
    parser.add_argument("--threads", type=int, metavar="N", help="how many threads (default: all cores)")


def run(arguments: argparse.Namespace) -> int:
    """Write prompt and text to standard output, character by character; 0. OSError or CheckpointError where there is no
    such model, ValueError for options out of their range."""
    if arguments.threads is not None:
        config.set_num_threads(arguments.threads)
    model = CharLM.load(model_file(arguments.model))
    text = model.generate(
        arguments.prompt,
        arguments.length,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        seed=arguments.seed,
    )
    write = sys.stdout.write
    write(arguments.prompt)
    for letter in text:
        write(letter)
        sys.stdout.flush()
    write("\n")
    return 0
