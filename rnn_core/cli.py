"""The command rnn-core. A subcommand is a row of COMMANDS; its module is imported when it is asked for."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, NoReturn

from rnn_core import __version__


class Parser(argparse.ArgumentParser):
    """One line for a bad option, without the usage that scrolls it away."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class Command(NamedTuple):
    """A subcommand: `module` has add_arguments(parser) and run(arguments) -> exit code."""

    name: str
    summary: str
    module: str


COMMANDS = (
    Command("train", "train a character-level language model on text", "rnn_core.cli_train"),
    Command("generate", "let a trained model write", "rnn_core.cli_generate"),
    Command("seq2seq", "train a sequence-to-sequence model, or decode with it", "rnn_core.cli_seq2seq"),
    Command("info", "show the instruction set, threads, BLAS and versions in use", "rnn_core.cli_info"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line (sys.argv's when none is given) and give its exit code; 2 for bad options and files."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(words)
    arguments = parser.parse_args(words)
    try:
        return int(arguments.run(arguments))
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError) as fault:  # what a user can put right
        return _fail(parser, fault, 2)
    except (ArithmeticError, MemoryError, ImportError) as fault:
        return _fail(parser, fault, 1)


def _fail(parser: argparse.ArgumentParser, fault: BaseException, code: int) -> int:
    if os.environ.get("RNN_CORE_TRACEBACK"):
        raise fault
    text = f"{fault.filename}: {fault.strerror}" if isinstance(fault, OSError) and fault.filename else str(fault)
    print(f"{parser.prog}: error: {' '.join(text.split()) or type(fault).__name__}", file=sys.stderr)
    return code


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; only the subcommand that stands in `words` gets its options, and so its imports."""
    parser = Parser(prog="rnn-core", description="Recurrent networks on CPUs.")
    parser.add_argument("--version", action="version", version=f"rnn-core {__version__}")
    subcommands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    asked = next((word for word in words if not word.startswith("-")), None)
    for command in COMMANDS:
        sub = subcommands.add_parser(command.name, help=command.summary, description=_sentence(command.summary))
        if command.name == asked:
            module = import_module(command.module)
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    return parser


def _sentence(summary: str) -> str:
    return summary[0].upper() + summary[1:] + "."


if __name__ == "__main__":
    sys.exit(main())
