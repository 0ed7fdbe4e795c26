"""Text to learn from: files, or the source of Python's standard library, which every machine has."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# Left out of the default text: what is installed beside the library, tests, and tables rather than code.
_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__", "lib-dynload", "ensurepip"}
_NOT_PROSE = {"test", "tests", "idlelib", "lib2to3", "encodings", "turtledemo", "pydoc_data"}


def read_texts(paths: Sequence[str | os.PathLike[str]]) -> str:
    """The files one after the other, read as UTF-8 with any kind of line ending.

    OSError where one cannot be read, ValueError where one is no text or all are empty.
    """
    parts = []
    for path in paths:
        try:
            parts.append(Path(path).read_text(encoding="utf-8-sig"))
        except UnicodeDecodeError as fault:
            raise ValueError(f"{path}: expected UTF-8 text, got byte {fault.object[fault.start]:#04x}"
                             f" at position {fault.start}") from None
    text = "".join(parts)
    if not text:
        raise ValueError(f"expected some text, got nothing from {', '.join(map(str, paths))}")
    return text


def standard_library() -> str:
    """The source of Python's standard library: about 10 million ASCII characters.

    Files come in the order of a hash of their names, so that the last part of the text, which is held out,
    is a fair sample of all packages.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_LIBRARY | _NOT_PROSE and "config-" not in name]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    found.sort(key=lambda path: hashlib.sha1(path.relative_to(root).as_posix().encode()).digest())
    parts = [path.read_bytes() for path in found]
    text = b"".join(part for part in parts if part.isascii()).decode("ascii").replace("\r\n", "\n")
    if not text:
        raise ValueError(f"expected the source of the standard library in {root}, got nothing; name a text file")
    return text


def fingerprint(text: str) -> str:
    """SHA-256 of the text, by which a resumed run knows it again."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def vocabulary(text: str) -> str:
    """The distinct characters of `text` in the order of their code points."""
    return "".join(sorted(set(text)))


def split(tokens: NDArray[np.integer], held_out: float) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """(training, validation): the last part of the text, `held_out` of its length, is for validation."""
    cut = len(tokens) - int(len(tokens) * held_out)
    return tokens[:cut], tokens[cut:]


class Streams:
    """A text cut into `batch` streams that are read side by side, `steps` characters at a time.

    One epoch reads every character once, but for a rest shorter than batch * (steps + 1). `offset`, below
    `offsets`, says where it starts, so that epochs can cut the text at different places.
    """

    def __init__(self, tokens: NDArray[np.integer], batch: int, steps: int) -> None:
        self.tokens, self.batch, self.steps = tokens, batch, steps
        self.chunks = (len(tokens) - 1 - batch) // (batch * steps)
        if self.chunks < 1:
            raise ValueError(
                f"text: expected at least {batch * (steps + 1) + 1} characters to train on for batch {batch} "
                f"and seq-length {steps}, got {len(tokens)}"
            )
        self.offsets = len(tokens) - self.chunks * batch * steps

    def chunk(self, k: int, offset: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The k-th piece of all streams: tokens and the ones that follow them, (T, B) each."""
        size = self.chunks * self.batch * self.steps
        here = slice(k * self.steps, (k + 1) * self.steps)
        x, y = (self.tokens[at : at + size].reshape(self.batch, -1)[:, here] for at in (offset, offset + 1))
        return np.ascontiguousarray(x.T, np.int64), np.ascontiguousarray(y.T, np.int64)
