"""Weights that others wrote: safetensors files, memory-mapped, straight into layers and models.

    rnn_core.weights.load(layer, "model.safetensors")                    # bare keys, or a prefix found by itself
    rnn_core.weights.load(layer, "model.safetensors", prefix="decoder.rnn")

Files are untrusted: header, sizes and offsets are checked before anything is mapped. Pickles (torch.save) are refused.
"""

from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_core.module import LoadResult, Module

Array = NDArray[Any]
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2"}
_DTYPES.update(I8="i1", U8="u1", BOOL="?")
_MAX_HEADER = 100_000_000  # the format's own bound
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")


def read(path: str | os.PathLike[str]) -> dict[str, Array]:
    """The tensors of a safetensors file by key, as read-only arrays over the mapped file.

    bfloat16 has no NumPy type: such tensors are widened to float32, exactly.
    OSError where the file cannot be read; ValueError where it is not a whole safetensors file.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if start.startswith(_PICKLES):
            raise ValueError(f"{Path(path)}: expected a safetensors file, got a pickle or a zip archive (torch.save)")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(_MAX_HEADER, size - 8):
            raise ValueError(f"{Path(path)}: expected a safetensors file, got a header of {length} bytes in {size}")
        header = file.read(length)
    try:
        entries = json.loads(header, object_pairs_hook=_unique)
        _check(entries, size - 8 - length)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{Path(path)}: expected a whole safetensors file ({error})") from None
    entries.pop("__metadata__", None)
    if size == 8 + length:
        return {key: np.empty(entry["shape"], _DTYPES[entry["dtype"]]) for key, entry in entries.items()}
    data = np.memmap(path, np.uint8, "r", 8 + length)
    return {key: _tensor(data, entry) for key, entry in entries.items()}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _check(entries: Any, size: int) -> None:
    """Every entry is a known type and a shape that fits its bytes; together they cover the data once."""
    if not isinstance(entries, dict):
        raise ValueError("the header is not an object")
    spans = []
    for key, entry in entries.items():
        if key == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = _DTYPES[entry["dtype"]], entry["shape"], entry["data_offsets"]
            whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{key!r}: its entry is not dtype, shape and data_offsets") from None
        if not whole or end - begin != prod(shape) * np.dtype(dtype).itemsize:
            raise ValueError(f"{key!r}: shape {shape} of {entry['dtype']} does not fit bytes {begin} to {end}")
        spans.append((begin, end))
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise ValueError(f"the tensors leave a gap or overlap at byte {at}")
        at = end
    if at != size:
        raise ValueError(f"the tensors take {at} bytes, the file has {size}")


def _tensor(data: NDArray[np.uint8], entry: dict[str, Any]) -> Array:
    begin, end = entry["data_offsets"]
    found = np.frombuffer(data[begin:end], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
    if entry["dtype"] == "BF16":
        found = (found.astype(np.uint32) << 16).view(np.float32)
    return found


def load(module: Module, path: str | os.PathLike[str], *, prefix: str | None = None, strict: bool = True) -> LoadResult:
    """Load a safetensors file, as PyTorch's users write them, into a layer or model.

    prefix  what stands before the module's keys in the file, such as "encoder.lstm"; None: nothing, or the one prefix
            under which all of the module's keys are there
    strict  as in load_state_dict; keys outside the prefix are never unexpected
    ValueError where no prefix, or more than one, fits, and for everything that load_state_dict and read refuse.
    """
    tensors = read(path)
    start = _prefix(module, tensors) if prefix is None else prefix and prefix.rstrip(".") + "."
    found = {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}
    return module.load_state_dict(found, strict)


def _prefix(module: Module, tensors: dict[str, Array]) -> str:
    keys = list(module.params)
    if not keys or all(key in tensors for key in keys):
        return ""
    fits = {name[: -len(keys[0])] for name in tensors if name.endswith("." + keys[0])}
    fits = {start for start in fits if all(start + key in tensors for key in keys)}
    if len(fits) > 1:
        raise ValueError(f"prefix: expected one of {sorted(fits)}, each of which has this module's keys")
    return fits.pop() if fits else ""
