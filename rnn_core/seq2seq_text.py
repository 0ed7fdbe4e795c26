"""Parallel text: pairs in a file, cut into characters, words or symbols, and the vocabularies that number them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rnn_core import checkpoint
from rnn_core.seq2seq import Seq2Seq

UNK, START, END = 0, 1, 2
SPECIAL = ("<unk>", "<s>", "</s>")
UNITS = ("characters", "words", "symbols")


@dataclass
class Vocabulary:
    """Numbers for the pieces of one side. unit: characters; words (with punctuation apart); symbols between spaces."""

    unit: str
    pieces: list[str]
    numbers: dict[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit: expected one of {list(UNITS)}, got {self.unit!r}")
        if tuple(self.pieces[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"pieces: expected {SPECIAL} first, got {self.pieces[:3]}")
        self.numbers = {piece: i for i, piece in enumerate(self.pieces)}

    @classmethod
    def of(cls, unit: str, lines: Iterable[str], least: int = 1) -> Vocabulary:
        """The pieces that come at least `least` times, the commonest first."""
        if unit not in UNITS:
            raise ValueError(f"unit: expected one of {list(UNITS)}, got {unit!r}")
        counts = Counter(piece for line in lines for piece in cut(unit, line))
        found = sorted((piece for piece, n in counts.items() if n >= least), key=lambda piece: (-counts[piece], piece))
        return cls(unit, [*SPECIAL, *(piece for piece in found if piece not in SPECIAL)])

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, line: str) -> list[int]:
        return [self.numbers.get(piece, UNK) for piece in cut(self.unit, line)]

    def decode(self, tokens: Iterable[int]) -> str:
        found = [self.pieces[token] for token in tokens]
        return "".join(found) if self.unit == "characters" else " ".join(found)


def cut(unit: str, line: str) -> list[str]:
    """The pieces of a line."""
    if unit == "characters":
        return list(line)
    return re.findall(r"\w+|[^\w\s]", line) if unit == "words" else line.split()


def read_pairs(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """(source, target) of each line `source TAB target` of a UTF-8 file; empty lines do not count.

    OSError where it cannot be read, ValueError naming the first line that is something else.
    """
    found = []
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as fault:
        raise ValueError(f"{path}: expected UTF-8 text, got byte {fault.object[fault.start]:#04x}"
                         f" at position {fault.start}") from None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line:
            continue
        fields = line.split("\t")
        if len(fields) != 2 or not fields[0].strip():
            raise ValueError(f"{path}, line {number}: expected a source, a tab and a target, got {line[:60]!r}")
        found.append((fields[0], fields[1]))
    if not found:
        raise ValueError(f"{path}: expected lines of a source, a tab and a target, got none")
    return found


@dataclass
class Translator:
    """A model with its vocabularies: text in, text out."""

    model: Seq2Seq
    source: Vocabulary
    target: Vocabulary

    def config(self) -> dict[str, Any]:
        """What a checkpoint holds of the vocabularies."""
        return {"vocabularies": {side: {"unit": v.unit, "pieces": v.pieces}
                                 for side, v in (("source", self.source), ("target", self.target))}}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Translator:
        """A model that `rnn-core seq2seq train` wrote. OSError, or CheckpointError where it is something else."""
        saved = checkpoint.load(path)
        try:
            model = Seq2Seq.from_config(saved.config["seq2seq"])
            sides = [Vocabulary(**saved.config["vocabularies"][side]) for side in ("source", "target")]
        except KeyError as fault:
            fault_text = f"{path}: expected a sequence-to-sequence model, {fault} is missing"
            raise checkpoint.CheckpointError(fault_text) from None
        saved.restore(model)
        return cls(model, *sides)

    def __call__(self, lines: Sequence[str], **options: Any) -> list[Any]:
        """Results of Seq2Seq.decode for lines of text; `text` turns their tokens into text."""
        sources = [self.source.encode(line) for line in lines]
        empty = next((i for i, row in enumerate(sources) if not row), None)
        if empty is not None:
            raise ValueError(f"line {empty + 1}: expected a source, got an empty line")
        return self.model.decode(sources, **options)

    def text(self, tokens: Iterable[int]) -> str:
        return self.target.decode(tokens)
