"""ONNX files as untrusted input: every size, offset and path is checked before it is used."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import onnx
except ImportError as error:
    raise ImportError("rnn_core.onnx needs the onnx package: pip install rnn-core[onnx]") from error
from google.protobuf.message import DecodeError
from onnx import TensorProto

# The element types that recurrent operators and their glue use: dtype in the file, and the field of unpacked values.
_TYPES = {
    TensorProto.FLOAT: ("<f4", "float_data"),
    TensorProto.DOUBLE: ("<f8", "double_data"),
    TensorProto.INT32: ("<i4", "int32_data"),
    TensorProto.INT64: ("<i8", "int64_data"),
}
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
_MAX_PROTO = 2**31 - 1  # protobuf's own bound; larger models keep their weights in external data


def read_model(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None]:
    """The model of a path, of bytes or as given, and the folder its external data may lie in (None: nowhere).

    ValueError for anything that is not a whole ONNX model; OSError where the file cannot be read.
    """
    if isinstance(source, onnx.ModelProto):
        return source, None
    if isinstance(source, (bytes, bytearray, memoryview)):
        content, folder = bytes(source), None
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.stat().st_size > _MAX_PROTO:
            raise ValueError(f"{path}: expected an ONNX model of at most 2 GiB, got {path.stat().st_size} bytes")
        content, folder = path.read_bytes(), path.resolve().parent
    else:
        raise TypeError(f"source: expected a path, bytes or onnx.ModelProto, got {type(source).__name__}")
    if content.startswith(_PICKLES):
        raise ValueError("source: expected an ONNX model, got a pickle or a zip archive (torch.save writes these)")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ValueError(f"source: expected an ONNX model, got bytes that do not parse as one ({error})") from None
    if not model.graph.node:
        raise ValueError("source: expected an ONNX model, got a message whose graph has no nodes")
    return model, folder


def opset(model: onnx.ModelProto) -> int:
    """The version of the default operator set; ValueError below 7, where the recurrent operators were different."""
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions or versions[0] < 7:
        raise ValueError(f"opset: expected 7 or later, got {versions[0] if versions else 'none'}")
    return versions[0]


def tensor_array(tensor: TensorProto, folder: Path | None) -> NDArray[Any]:
    """The values of a tensor; ValueError where its data does not fit its type and shape."""
    name = tensor.name or "a constant"
    if tensor.data_type not in _TYPES:
        raise ValueError(f"{name}: expected float32, float64, int32 or int64, got ONNX type {tensor.data_type}")
    code, field = _TYPES[tensor.data_type]
    dtype, shape = np.dtype(code), tuple(tensor.dims)
    if any(n < 0 for n in shape):
        raise ValueError(f"{name}: expected sizes of at least 0, got shape {shape}")
    nbytes = prod(shape) * dtype.itemsize  # Python integers: no overflow
    if tensor.data_location == TensorProto.EXTERNAL:
        return np.frombuffer(_external(tensor, folder, nbytes), dtype).reshape(shape)
    if tensor.HasField("raw_data"):
        if len(tensor.raw_data) != nbytes:
            raise ValueError(f"{name}: expected {nbytes} bytes for shape {shape}, got {len(tensor.raw_data)}")
        return np.frombuffer(tensor.raw_data, dtype).reshape(shape)
    values = getattr(tensor, field)
    if len(values) * dtype.itemsize != nbytes:
        raise ValueError(f"{name}: expected {prod(shape)} values for shape {shape}, got {len(values)}")
    return np.array(values, dtype).reshape(shape)


def _external(tensor: TensorProto, folder: Path | None, nbytes: int) -> bytes:
    """The bytes of external data, which must lie in a regular file inside the model's folder."""
    name = tensor.name or "a constant"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if folder is None:
        raise ValueError(f"{name}: external data {location!r} needs a model loaded from a path")
    path = _inside(name, folder, location)
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", nbytes))
    except ValueError:
        raise ValueError(f"{name}: expected whole numbers for offset and length of external data") from None
    if offset < 0 or length != nbytes:
        raise ValueError(f"{name}: expected {nbytes} bytes of external data, got {length} at offset {offset}")
    # O_NOFOLLOW: what was checked above is what is opened, even if the file is exchanged in between.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    with os.fdopen(handle, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if offset + nbytes > size:
            raise ValueError(f"{name}: expected {nbytes} bytes at {offset} of {location!r}, which has {size}")
        file.seek(offset)
        return file.read(nbytes)


def _inside(name: str, folder: Path, location: str) -> Path:
    """folder / location, unless it is absolute, climbs, passes a link or is not a regular file."""
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location or os.path.isabs(location) or ".." in parts or ":" in parts[0] or not parts[0]:
        raise ValueError(f"{name}: external data must lie inside the model's folder, got {location!r}")
    path = folder
    for part in parts:
        path = path / part
        try:
            mode = path.lstat().st_mode
        except OSError:
            raise ValueError(f"{name}: external data {location!r} is not there") from None
        if stat.S_ISLNK(mode):
            raise ValueError(f"{name}: external data must not pass a link, got {location!r}")
    if not stat.S_ISREG(path.lstat().st_mode) or path.lstat().st_nlink > 1:
        raise ValueError(f"{name}: external data must be a regular file of its own, got {location!r}")
    return path


def constants(model: onnx.ModelProto, folder: Path | None) -> dict[str, NDArray[Any]]:
    """Initializers and Constant nodes by name."""
    found = {tensor.name: tensor_array(tensor, folder) for tensor in model.graph.initializer}
    if model.graph.sparse_initializer:
        raise ValueError("expected dense weights, got sparse initializers")
    for node, value in _constant_nodes(model):
        found[node.output[0]] = tensor_array(value, folder)
    return found


def _constant_nodes(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, TensorProto]]:
    for node in model.graph.node:
        if node.op_type != "Constant":
            continue
        values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        if len(values) != 1 or len(node.output) != 1:
            raise ValueError(f"Constant {list(node.output)}: expected a tensor value")
        yield node, values[0]
