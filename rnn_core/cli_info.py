"""rnn-core info."""

from __future__ import annotations

import argparse

from rnn_core.config import show_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(arguments: argparse.Namespace) -> int:
    """Print the configuration; 0."""
    show_config()
    return 0
