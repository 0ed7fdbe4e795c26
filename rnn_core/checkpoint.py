"""Checkpoints: safetensors files, written atomically and refused when damaged. Nothing is ever unpickled.

A file holds the model's tensors under their own keys, so that any reader of safetensors finds the weights where
PyTorch would have them. What else a training run needs stands beside them under keys with a slash, which no
parameter has (`optimiser/...`, `random/...`, `extra/...`), and as JSON in the metadata:

    format        "rnn_core 1"
    checksum      SHA-256 over all other metadata and all tensors
    config        what the owner needs to build the model again (a character model: its sizes and vocabulary)
    step          how many optimiser steps were made
    optimiser     Optimiser.state_dict() whose arrays are replaced by {"tensor": key}
    random        the state of a numpy.random.Generator, likewise
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = "rnn_core 1"
_TENSOR = "tensor"  # {"tensor": key} in the JSON stands for an array
Arrays = dict[str, NDArray[Any]]


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or does not fit what it is loaded into."""


# ---- the file: tensors and metadata -----------------------------------------------------------------------


def write(path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> Path:
    """Write one safetensors file atomically: whoever opens `path` finds the old file or the new one, whole.

    metadata: values that JSON can hold, under string keys. OSError where the folder cannot be written.
    """
    from safetensors.numpy import save as to_bytes

    arrays = {key: np.ascontiguousarray(array) for key, array in tensors.items()}
    text = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata.items()}
    text["format"] = FORMAT
    text["checksum"] = _checksum(arrays, text)
    target = Path(os.path.realpath(path))  # through a link, as open() would write
    _replace(target, to_bytes(arrays, text))
    return target


def read(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, Any]]:
    """(tensors, metadata) of a file that `write` made.

    OSError where it cannot be read, CheckpointError where it is something else, cut short or altered.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    data = Path(path).read_bytes()
    try:
        tensors = from_bytes(data)
        header = int.from_bytes(data[:8], "little")
        text = json.loads(data[8 : 8 + header]).get("__metadata__", {})
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError) as fault:
        raise CheckpointError(f"{path}: not a whole safetensors file ({fault})") from None
    if text.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected a checkpoint of format {FORMAT!r}, got {text.get('format')!r}")
    if text.pop("checksum", None) != _checksum(tensors, text):
        raise CheckpointError(f"{path}: damaged, the checksum does not match the contents")
    del text["format"]
    return tensors, {key: json.loads(value) for key, value in text.items()}


def _checksum(tensors: Mapping[str, NDArray[Any]], text: Mapping[str, str]) -> str:
    found = hashlib.sha256(json.dumps(sorted(text.items())).encode())
    for key in sorted(tensors):
        array = tensors[key]
        found.update(f"\n{key} {array.dtype.str} {array.shape}\n".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def _replace(target: Path, data: bytes) -> None:
    """Make `data` the contents of `target`; a crash at any moment leaves the old contents or the new."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name in `folder` survive a power cut; some file systems cannot, and need not."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as fault:
        if fault.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


# ---- a training run: model, optimiser, random state -------------------------------------------------------


@dataclass
class Checkpoint:
    """What a file holds. `model` and `extra` are arrays by key, `optimiser` and `random` are state dictionaries."""

    model: Arrays
    config: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    optimiser: dict[str, Any] | None = None
    random: dict[str, Any] | None = None
    extra: Arrays = field(default_factory=dict)

    def restore(self, model: Any, optimiser: Any = None, rng: np.random.Generator | None = None) -> None:
        """Put the contents into objects of the same shapes: all of them, or none where one does not fit.

        CheckpointError says what was expected and what came.
        """
        steps: list[tuple[Callable[[Any], Any], Any, Any]] = [(model.load_state_dict, model.state_dict(), self.model)]
        if optimiser is not None:
            steps.append((optimiser.load_state_dict, optimiser.state_dict(), _present("optimiser", self.optimiser)))
        if rng is not None:
            source = rng.bit_generator
            steps.append((lambda new: _set_random(source, new), source.state, _present("random", self.random)))
        done: list[tuple[Callable[[Any], Any], Any]] = []
        try:
            for load_into, before, after in steps:
                done.append((load_into, before))
                load_into(after)
        except (ValueError, TypeError, KeyError) as fault:
            for load_into, before in done:
                load_into(before)
            raise CheckpointError(f"the checkpoint does not fit: {fault}") from None


def _present(name: str, state: dict[str, Any] | None) -> dict[str, Any]:
    if state is None:
        raise CheckpointError(f"the checkpoint holds no {name} state")
    return state


def _set_random(source: Any, state: Mapping[str, Any]) -> None:
    wanted = source.state["bit_generator"]
    if state.get("bit_generator") != wanted:
        raise ValueError(f"random state: expected one of {wanted}, got {state.get('bit_generator')!r}")
    source.state = state


def save(
    path: str | os.PathLike[str],
    model: Any,
    optimiser: Any = None,
    *,
    step: int = 0,
    rng: np.random.Generator | None = None,
    config: Mapping[str, Any] | None = None,
    extra: Mapping[str, NDArray[Any]] | None = None,
) -> Path:
    """Save a module (and what else is given) to `path`, atomically; the path that was written.

    config: what JSON can hold. extra: further arrays, a carried state for example.
    """
    tensors = dict(model.state_dict())
    metadata: dict[str, Any] = {"config": dict(config or {}), "step": int(step)}
    if optimiser is not None:
        metadata["optimiser"] = _take_arrays(optimiser.state_dict(), "optimiser", tensors)
    if rng is not None:
        metadata["random"] = _take_arrays(rng.bit_generator.state, "random", tensors)
    tensors.update((f"extra/{key}", array) for key, array in (extra or {}).items())
    return write(path, tensors, metadata)


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a file that `save` wrote. OSError, or CheckpointError where it is damaged or something else."""
    tensors, metadata = read(path)
    try:
        return Checkpoint(
            model={key: array for key, array in tensors.items() if "/" not in key},
            config=metadata["config"],
            step=metadata["step"],
            optimiser=_give_arrays(metadata.get("optimiser"), tensors),
            random=_give_arrays(metadata.get("random"), tensors),
            extra={key[len("extra/") :]: array for key, array in tensors.items() if key.startswith("extra/")},
        )
    except KeyError as fault:
        raise CheckpointError(f"{path}: expected a saved model, {fault} is missing") from None


def _take_arrays(tree: Any, key: str, tensors: Arrays) -> Any:
    """`tree` as JSON can hold it; its arrays go to `tensors` under keys that start with `key`."""
    if isinstance(tree, np.ndarray):
        tensors[key] = tree
        return {_TENSOR: key}
    if isinstance(tree, np.generic):
        return tree.item()
    if isinstance(tree, Mapping):
        return {name: _take_arrays(value, f"{key}/{name}", tensors) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [_take_arrays(value, f"{key}/{i}", tensors) for i, value in enumerate(tree)]
    return tree


def _give_arrays(tree: Any, tensors: Mapping[str, NDArray[Any]]) -> Any:
    """The inverse of _take_arrays (tuples come back as lists)."""
    if isinstance(tree, dict):
        if set(tree) == {_TENSOR} and isinstance(tree[_TENSOR], str):
            return tensors[tree[_TENSOR]]
        return {name: _give_arrays(value, tensors) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_give_arrays(value, tensors) for value in tree]
    return tree
