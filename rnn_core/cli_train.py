"""rnn-core train: a character-level language model from text files."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from typing import Any

from rnn_core import checkpoint, config, diagnostics, plots
from rnn_core.charlm import CELLS, CharLM
from rnn_core.run import RunFiles
from rnn_core.text import read_texts, standard_library
from rnn_core.train import OPTIMISERS, Options, Result, Trainer, new_model

EPOCHS = 10  # where neither epochs nor minutes are asked for
DEFAULTS = Options()
# name in Options, value's name, help; the defaults stand in Options, so that --resume can tell what was asked for
OPTIONS: tuple[tuple[str, str | None, str], ...] = (
    ("layers", "N", "stacked layers"),
    ("hidden", "N", "hidden units of a layer"),
    ("embedding", "N", "numbers that stand for a character"),
    ("dropout", "P", "dropout between layers and before the output"),
    ("seq_length", "N", "steps through which gradients go back (truncated BPTT)"),
    ("batch", "N", "places in the text that are read side by side"),
    ("lr", "X", "highest learning rate; it falls to zero over the run"),
    ("warmup", "N", "steps over which the learning rate rises"),
    ("weight_decay", "X", "of the weight matrices, with adamw"),
    ("clip", "X", "largest norm of the gradients; 0 for no clipping"),
    ("seed", "N", "of all random numbers"),
    ("validation", "P", "the part of the text, at its end, that is held out"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The files and the fields of train.Options; those not asked for stay unset, for --resume to take the run's own."""
    parser.epilog = (
        "Writes NAME.safetensors (the best model), NAME.last.safetensors (to --resume from), NAME.csv, NAME.loss.png "
        "and NAME.gradients.png. Ctrl-C saves; --resume goes on."
    )
    unset: dict[str, Any] = {"default": argparse.SUPPRESS}
    parser.add_argument("text", nargs="*", metavar="TEXT", help="UTF-8 files (default: Python's standard library)")
    parser.add_argument("--out", default="charlm", metavar="NAME", help="name of the files (default charlm)")
    parser.add_argument("--resume", action="store_true", help="go on with the run NAME where it stopped")
    parser.add_argument("--cell", choices=list(CELLS), help=f"kind of network (default {DEFAULTS.cell})", **unset)
    rule = f"how weights are updated (default {DEFAULTS.optimiser})"
    parser.add_argument("--optimiser", "--optimizer", choices=list(OPTIMISERS), help=rule, **unset)
    types = {field.name: int if "int" in str(field.type) else float for field in fields(Options)}
    for name, value, text in OPTIONS:
        default = getattr(DEFAULTS, name)
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=types[name], metavar=value, help=f"{text} (default {default:g})", **unset)
    until = f"times to read the text (default {EPOCHS}, or until --minutes)"
    parser.add_argument("--epochs", type=int, metavar="N", help=until, **unset)
    parser.add_argument(
        "--minutes", type=float, metavar="M", help="train for this long; the learning rate falls to fit", **unset
    )
    parser.add_argument("--threads", type=int, metavar="N", help="how many threads (default: all cores)")


def run(arguments: argparse.Namespace) -> int:
    """Train, or go on; 0 at the end of the run, 130 after an interrupt, with a checkpoint to go on from. ValueError or
    TypeError for options, texts and checkpoints that do not fit, OSError for files, Diverged for a loss or a gradient
    that is not finite."""
    if arguments.threads is not None:
        config.set_num_threads(arguments.threads)
    files = RunFiles.of(arguments.out)
    asked = {field.name: getattr(arguments, field.name) for field in fields(Options) if hasattr(arguments, field.name)}
    trainer = (_resumed if arguments.resume else _new)(arguments.text, asked, files)
    _describe(trainer)
    result = trainer.train()
    if not result.finished:
        print(f"stopped at step {result.position.step}, saved; go on with: rnn-core train --resume --out {files.name}")
        return 130
    _finish(trainer, result)
    return 0


def _new(paths: list[str], asked: dict[str, Any], files: RunFiles) -> Trainer:
    if not {"epochs", "minutes"} & set(asked):
        asked["epochs"] = EPOCHS
    options = Options(**asked)
    _prepare_folder(files)
    return Trainer(_text(paths), options, files, {"paths": [os.path.abspath(path) for path in paths]})


def _resumed(paths: list[str], asked: dict[str, Any], files: RunFiles) -> Trainer:
    found = checkpoint.load(files.last)
    known = found.config.get("source", {}).get("paths", [])
    return Trainer.resume(found, _text(paths or known), files, asked)


def _text(paths: list[str]) -> str:
    return read_texts(paths) if paths else standard_library()


def _prepare_folder(files: RunFiles) -> None:
    """Make the folder, and find out now rather than after an hour whether it can be written."""
    folder = files.best.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(13, "the folder cannot be written", str(folder))


def _describe(trainer: Trainer) -> None:
    options, model = trainer.options, trainer.model
    source = ", ".join(map(os.path.basename, trainer.source.get("paths", []))) or "Python's standard library"
    print(
        f"{source}: {len(trainer.streams.tokens):,} characters to train on, {len(trainer.held_out):,} held out, "
        f"{len(model.vocabulary)} distinct"
    )
    print(
        f"{options.layers} x {options.hidden} {options.cell.upper()}, {model.num_parameters():,} parameters, "
        f"{config.get_num_threads()} threads"
        + (f"; goes on at step {trainer.at.step}, epoch {trainer.epoch:.2f}" if trainer.at.step else ""),
        flush=True,
    )


def _finish(trainer: Trainer, result: Result) -> None:
    at, files = result.position, trainer.files
    print(
        f"{trainer.characters:,} characters in {at.seconds:.1f} s; "
        f"{trainer.characters / max(at.step_seconds, 1e-9):,.0f} characters a second in training steps"
    )
    if plots.available():
        _draw(trainer, result)
        print(f"pictures {files.beside('.loss.png')} and {files.beside('.gradients.png')}")
    else:
        print("no pictures drawn: matplotlib is not installed (pip install 'rnn_core[plot]')")
    print(f"validation loss {result.validation:.4f} nats/char, best {result.best:.4f}, model {files.best}")
    sys.stdout.flush()


def _draw(trainer: Trainer, result: Result) -> None:
    """The loss curves, and the gradient flow of the first weights and of the trained ones on held-out text."""
    options, files = trainer.options, trainer.files
    title = f"{options.layers} x {options.hidden} {options.cell.upper()}"
    plots.loss_curves(files.beside(".loss.png"), result.rows, title)
    steps = min(options.seq_length, len(trainer.held_out) - 1)
    batch = min(16, (len(trainer.held_out) - 1) // steps)
    pieces = trainer.held_out[: batch * steps].reshape(batch, steps).T
    targets = trainer.held_out[steps : batch * steps + 1 : steps]
    models = {"first weights": new_model(trainer.model.vocabulary, options), "trained": CharLM.load(files.best)}
    flows = {name: diagnostics.model_gradient_flow(model, pieces, targets) for name, model in models.items()}
    plots.gradient_flow(files.beside(".gradients.png"), flows, title)
