"""rnn-core seq2seq: train a model on pairs of texts, and let it translate lines."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np

from rnn_core import config, plots
from rnn_core.run import RunFiles, model_file
from rnn_core.seq2seq import ATTENTION, CELLS, Decoder, Encoder, Seq2Seq
from rnn_core.seq2seq_text import END, START, UNITS, UNK, Translator, Vocabulary, cut, read_pairs
from rnn_core.seq2seq_train import Pairs, Trainer, TrainOptions

EPOCHS = 20.0  # where neither epochs nor minutes are asked for
LINES = 256  # that are decoded together


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its two parts, train and decode, with the options of each."""
    parts = parser.add_subparsers(dest="part", metavar="PART", required=True)
    _train_arguments(parts.add_parser("train", help="train on pairs of texts"))
    _decode_arguments(parts.add_parser("decode", help="translate standard input, line by line, to standard output"))


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = ("Writes NAME.safetensors (the best model), NAME.last.safetensors (to --resume from), NAME.csv and "
                     "NAME.loss.png. Ctrl-C saves; --resume goes on.")
    add = parser.add_argument
    add("pairs", metavar="PAIRS.tsv", help="UTF-8 lines: source, tab, target")
    add("--out", default="seq2seq", metavar="NAME", help="name of the files (default seq2seq)")
    add("--resume", action="store_true", help="go on with the run NAME where it stopped (same data and options)")
    for side in ("source", "target"):
        add(f"--{side}-unit", choices=UNITS, default="characters", help=f"what a {side} is of (default characters)")
    add("--min-count", type=int, default=1, metavar="N", help="pieces that come more rarely are unknown (default 1)")
    add("--cell", choices=list(CELLS), default="gru", help="kind of network (default gru)")
    add("--attention", choices=[str(a).lower() for a in ATTENTION], default="general", help="default general")
    add("--input-feeding", action="store_true", help="feed what attention found into the next step")
    add("--tied", action="store_true", help="one table for the target embeddings and the output layer")
    for name, default, text in (("layers", 1, "stacked layers of encoder and decoder"),
                                ("hidden", 256, "hidden units of the decoder"),
                                ("embedding", 128, "numbers that stand for a token"), ("batch", 64, "pairs a step"),
                                ("seed", 0, "of all random numbers")):
        add(f"--{name}", type=int, default=default, metavar="N", help=f"{text} (default {default})")
    for name, number, text in (("dropout", 0.2, "of embeddings, between layers, before the output"),
                               ("lr", 1e-3, "highest learning rate; it falls to zero over the run"),
                               ("label-smoothing", 0.1, "part of the target spread over all tokens"),
                               ("sampling", 0.0, "scheduled sampling: chance at the end"),
                               ("clip", 1.0, "largest norm of the gradients"),
                               ("validation", 0.05, "part of the pairs that is held out")):
        add(f"--{name}", type=float, default=number, metavar="X", help=f"{text} (default {number:g})")
    add("--patience", type=int, metavar="N", help="stop after N epochs without a better validation loss")
    add("--epochs", type=float, metavar="N", help=f"times to read the pairs (default {EPOCHS:g}, or until --minutes)")
    add("--minutes", type=float, metavar="M", help="train for this long; the learning rate falls to fit")
    add("--threads", type=int, metavar="N", help="how many threads (default: all cores)")


def _decode_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model that train wrote; the ending may be left out")
    add("--beam", type=int, default=5, metavar="N", help="hypotheses that are followed (default 5; 1: greedy)")
    add("--n-best", type=int, default=1, metavar="N", help="lines that are written for each one read (default 1)")
    add("--scores", action="store_true", help="write each line's score and a tab before it")
    add("--length-penalty", type=float, default=1.0, metavar="X", help="scores are divided by length^X (default 1)")
    add("--max-length", type=int, default=256, metavar="N", help="most tokens of an output (default 256)")
    add("--attention", metavar="FILE.png", help="draw the attention of the first line")
    add("--threads", type=int, metavar="N", help="how many threads (default: all cores)")


def run(arguments: argparse.Namespace) -> int:
    """Train, or decode standard input; 0 at the end, 130 after an interrupt of training, which is saved. ValueError and
    OSError for options and files that do not fit."""
    if arguments.threads is not None:
        config.set_num_threads(arguments.threads)
    return _train(arguments) if arguments.part == "train" else _decode(arguments, sys.stdin)


# --------------------------------------------------------------------------------------------------------- training


def _train(arguments: argparse.Namespace) -> int:
    options = TrainOptions(
        epochs=EPOCHS if arguments.epochs is None and arguments.minutes is None else arguments.epochs,
        minutes=arguments.minutes, batch_size=arguments.batch, lr=arguments.lr, sampling=arguments.sampling,
        label_smoothing=arguments.label_smoothing, clip=arguments.clip, patience=arguments.patience,
        seed=arguments.seed,
    )
    files = RunFiles.of(arguments.out)
    files.best.absolute().parent.mkdir(parents=True, exist_ok=True)
    pairs = read_pairs(arguments.pairs)
    shuffled = np.random.default_rng(arguments.seed).permutation(len(pairs))
    held = min(int(len(pairs) * arguments.validation), len(pairs) - 1)
    rows = [[pairs[i] for i in part] for part in (shuffled[held:], shuffled[:held])]
    translator = _new_translator(arguments, rows[0])
    train, valid = (Pairs.of([translator.source.encode(s) for s, _ in part],
                             [translator.target.encode(t) for _, t in part]) for part in rows)
    print(f"{len(train):,} pairs to train on, {held:,} held out, vocabularies of {len(translator.source):,} and "
          f"{len(translator.target):,}, {translator.model.num_parameters():,} parameters, "
          f"{config.get_num_threads()} threads", flush=True)
    trainer = Trainer(translator.model, train, options, valid if held else None, files=files,
                      config=translator.config())
    state = trainer.run(resume=arguments.resume)
    if trainer.stopped:
        print(f"stopped at step {state.step}, saved; go on with --resume")
        return 130
    print(f"validation loss {state.best:.4f} nats/token, model {files.best}")
    return 0


def _new_translator(arguments: argparse.Namespace, rows: list[tuple[str, str]]) -> Translator:
    source = Vocabulary.of(arguments.source_unit, (s for s, _ in rows), arguments.min_count)
    target = Vocabulary.of(arguments.target_unit, (t for _, t in rows), arguments.min_count)
    shared: dict[str, Any] = {"cell": arguments.cell, "dropout": arguments.dropout}
    encoder = Encoder(len(source), arguments.embedding, -(-arguments.hidden // 2), arguments.layers, bidirectional=True,
                      seed=arguments.seed, **shared)
    attention = None if arguments.attention == "none" else arguments.attention
    decoder = Decoder(len(target), arguments.embedding, arguments.hidden, arguments.layers, attention=attention,
                      memory_size=encoder.output_size, input_feeding=arguments.input_feeding, tied=arguments.tied,
                      start_token=START, end_token=END, unk_token=UNK, seed=arguments.seed + 1, **shared)
    return Translator(Seq2Seq(encoder, decoder, seed=arguments.seed + 2), source, target)


# --------------------------------------------------------------------------------------------------------- decoding


def _decode(arguments: argparse.Namespace, stream: TextIO) -> int:
    translator = Translator.load(model_file(arguments.model))
    options = {"beam_size": arguments.beam, "num_hypotheses": arguments.n_best, "return_scores": arguments.scores,
               "length_penalty": arguments.length_penalty, "max_decoding_length": arguments.max_length,
               "disable_unk": True}
    first = True
    for lines in _blocks(stream):
        for result in translator(lines, **options):
            for i, tokens in enumerate(result.hypotheses):
                score = f"{result.scores[i]:.4f}\t" if arguments.scores else ""
                print(score + translator.text(tokens))
        sys.stdout.flush()
        if first and arguments.attention:
            _draw(translator, lines[0], arguments.attention, {**options, "return_attention": True})
        first = False
    return 0


def _blocks(stream: TextIO) -> Iterator[list[str]]:
    """Lines of a stream, many at a time; one by one where a person types them."""
    most, block = 1 if stream.isatty() else LINES, []
    for line in stream:
        block.append(line.rstrip("\r\n"))
        if len(block) == most:
            yield block
            block = []
    if block:
        yield block


def _draw(translator: Translator, line: str, path: str, options: dict[str, Any]) -> None:
    if not plots.available():
        print("no picture drawn: matplotlib is not installed (pip install 'rnn_core[plot]')", file=sys.stderr)
        return
    result = translator([line], **options)[0]
    target = [translator.target.pieces[token] for token in result.tokens]
    plots.attention(path, result.attention[0], cut(translator.source.unit, line), target)
