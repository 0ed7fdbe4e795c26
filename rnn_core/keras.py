"""Keras 3: weights of its recurrent layers out of .weights.h5 and .keras files, and its layers run on the engine.

    layers = rnn_core.keras.load("model.keras")      # {"bidirectional": rc.LSTM(...), "gru": rc.GRU(...)}
    rnn_core.keras.enable()                          # Keras's LSTM and GRU now run here; disable() undoes it

Reading needs h5py, enable() needs keras (pip install rnn-core[keras]). Files are untrusted: links out of the file,
external storage and shapes that the stored bytes do not cover are refused, and nothing in them is ever executed.

Keras keeps kernels transposed, (I, G*H), with one bias (two rows for a GRU with reset_after), in the gate order
i, f, c, o and z, r, h. Layers get each weight bit for bit; Keras's one bias becomes bias_ih and bias_hh is zero.
unit_forget_bias only says how Keras began; the bias in a file has it already.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_core import general, recurrent
from rnn_core.module import Module

Array = NDArray[Any]
_CELLS = {"lstm": 4, "gru": 3, "simple_rnn": 1}
_CLASSES = {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "simple_rnn"}
# Keras's activations by ONNX's names; Keras's hard_sigmoid is relu6(x + 3) / 6.
ACTIVATIONS: dict[str, Any] = {
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "relu": "Relu",
    "linear": ("Affine", 1.0, 0.0),
    "hard_sigmoid": ("HardSigmoid", 1 / 6, 0.5),
    "softsign": "Softsign",
    "softplus": "Softplus",
    "elu": ("Elu", 1.0),
}
_MAX_CONFIG = 64 << 20
_MAX_DEPTH = 16


# ---- weights to layers ----------------------------------------------------------------------------------------------


def layer_of(kind: str, directions: list[Mapping[str, Any]], config: Mapping[str, Any]) -> Module:
    """A batch_first layer from Keras's arrays.

    kind        "lstm", "gru" or "simple_rnn"
    directions  of each direction: kernel (I, G*H), recurrent (H, G*H), and bias (G*H,), (2, G*H) or None
    config      Keras's own: activation, recurrent_activation, reset_after, go_backwards; what is missing is its default
    ValueError for arrays that do not fit together, and for activations that rnn_core does not have.
    """
    width, H = _sizes(kind, directions)
    first = directions[0]
    options: dict[str, Any] = {
        "bias": first["bias"] is not None,
        "batch_first": True,
        "bidirectional": len(directions) == 2,
        "dtype": first["kernel"].dtype.name,
    }
    reset_after = bool(config.get("reset_after", first["bias"] is None or first["bias"].ndim == 2))
    if kind == "gru":
        options["reset_after"] = reset_after
    made = _made(kind, width, H, options, config)
    state: dict[str, Array] = {}
    for d, arrays in enumerate(directions):
        state.update(_parameters(kind, arrays, reset_after, "_l0" + "_reverse" * d))
    made.load_state_dict(state)
    return made


def _sizes(kind: str, directions: list[Mapping[str, Any]]) -> tuple[int, int]:
    kernel, recurrent_kernel = directions[0]["kernel"], directions[0]["recurrent"]
    G, H = _CELLS[kind], recurrent_kernel.shape[0]
    if kernel.ndim != 2 or recurrent_kernel.shape != (H, G * H) or not H:
        raise ValueError(f"{kind}: expected a recurrent kernel (H, {G}*H), got {recurrent_kernel.shape}")
    width = kernel.shape[0]
    expected: dict[str, list[tuple[int, ...]]] = {
        "kernel": [(width, G * H)],
        "recurrent": [(H, G * H)],
        "bias": [(G * H,)] + [(2, G * H)] * (kind == "gru"),
    }
    for arrays in directions:
        for name, shapes in expected.items():
            found = arrays[name]
            if found is None and name == "bias" and directions[0]["bias"] is None:
                continue
            if found is None or found.shape not in shapes or found.dtype != kernel.dtype:
                got = "none" if found is None else f"{found.dtype} {found.shape}"
                raise ValueError(f"{kind}: expected {name} of shape {shapes[-1]}, {kernel.dtype}, got {got}")
    return width, H


def _made(kind: str, width: int, H: int, options: dict[str, Any], config: Mapping[str, Any]) -> Module:
    """The fused layer where it can be, else one of the general path."""
    activation = str(config.get("activation", "tanh"))
    gate = str(config.get("recurrent_activation", "sigmoid"))
    backwards = bool(config.get("go_backwards", False)) and not options["bidirectional"]
    if kind == "simple_rnn" and activation in ("tanh", "relu") and not backwards:
        return recurrent.RNN(width, H, nonlinearity=activation, **options)
    if kind != "simple_rnn" and (activation, gate) == ("tanh", "sigmoid") and not backwards:
        return {"lstm": recurrent.LSTM, "gru": recurrent.GRU}[kind](width, H, **options)
    names = {"simple_rnn": [activation], "gru": [gate, activation], "lstm": [gate, activation, activation]}[kind]
    if unknown := [name for name in names if name not in ACTIVATIONS]:
        raise ValueError(f"{kind}: expected activations of {list(ACTIVATIONS)}, got {unknown}")
    options.update(activations=[ACTIVATIONS[name] for name in names], reverse=backwards)
    classes = {"simple_rnn": general.GeneralRNN, "gru": general.GeneralGRU, "lstm": general.GeneralLSTM}
    return classes[kind](width, H, **options)


def _parameters(kind: str, arrays: Mapping[str, Any], reset_after: bool, suffix: str) -> dict[str, Array]:
    def turned(array: Array) -> Array:
        """Keras's z, r, h as r, z, h; rows are units."""
        if kind != "gru":
            return array
        z, r, h = np.split(array, 3)
        return np.concatenate([r, z, h])

    bias = arrays["bias"]
    if kind == "gru" and bias is not None and (bias.ndim == 2) != reset_after:
        raise ValueError(f"gru: expected {'two rows' if reset_after else 'one row'} of bias, got shape {bias.shape}")
    state = {
        "weight_ih" + suffix: turned(arrays["kernel"].T),
        "weight_hh" + suffix: turned(arrays["recurrent"].T),
    }
    if bias is not None:
        ih, hh = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
        state["bias_ih" + suffix], state["bias_hh" + suffix] = turned(ih), turned(hh)
    return state


# ---- files ----------------------------------------------------------------------------------------------------------


def load(path: str | os.PathLike[str]) -> dict[str, Module]:
    """The recurrent layers of a .weights.h5 or .keras file by Keras's layer names, as batch_first layers.

    A .keras file says activations, reset_after, go_backwards and how Bidirectional joins (concat only). A .weights.h5
    file has weights alone: its layers get Keras's defaults (tanh and sigmoid; reset_after if the bias has two rows).
    Bidirectional becomes a bidirectional layer. A layer with go_backwards=True gives y in the order of time, where
    Keras gives it in the order of processing, y[:, ::-1].
    ValueError for files of another form and for anything in them that is not as Keras writes it.
    """
    h5py = _h5py()
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(b"PK\x03\x04"):
        weights, configs = _archive(path)
        source: Any = io.BytesIO(weights)
    elif start == b"\x89HDF\r\n\x1a\n":
        source, configs = os.fspath(path), None
    else:
        raise ValueError(
            f"{os.fspath(path)}: expected a .weights.h5 or .keras file, got neither HDF5 nor a zip archive"
        )
    try:
        with h5py.File(source, "r") as opened:
            return _Reader(h5py, configs).layers(opened)
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{os.fspath(path)}: expected a whole HDF5 file as Keras writes it ({error})") from None


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError("rnn_core.keras.load needs h5py: pip install rnn-core[keras]") from error
    return h5py


def _archive(path: str | os.PathLike[str]) -> tuple[bytes, dict[str, Mapping[str, Any]]]:
    """model.weights.h5 of a .keras archive, and the configs of its layers by name."""
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(_member(archive, "config.json", _MAX_CONFIG))
            # Weights do not compress: a member that grows tenfold is not one.
            weights = _member(archive, "model.weights.h5", 10 * os.path.getsize(path))
    except (zipfile.BadZipFile, KeyError, json.JSONDecodeError, UnicodeDecodeError, NotImplementedError) as error:
        raise ValueError(f"{os.fspath(path)}: expected a .keras archive ({error})") from None
    found: dict[str, Mapping[str, Any]] = {}
    _collect(config, found, 0)
    return weights, found


def _member(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    with archive.open(name) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{name}: expected at most {most} bytes in the archive")
    return content


def _collect(node: Any, found: dict[str, Mapping[str, Any]], depth: int) -> None:
    """Every layer of the config by its name, also those inside models and wrappers."""
    if depth > 100:
        raise ValueError("config.json: expected fewer levels")
    if isinstance(node, list):
        for one in node:
            _collect(one, found, depth + 1)
    elif isinstance(node, dict):
        config = node.get("config")
        if isinstance(config, dict) and isinstance(config.get("name"), str) and "class_name" in node:
            found[config["name"]] = node
        for one in node.values():
            _collect(one, found, depth + 1)


class _Reader:
    """Walks the groups of an opened weights file; trusts nothing in it."""

    def __init__(self, h5py: Any, configs: Mapping[str, Mapping[str, Any]] | None) -> None:
        self.h5py, self.configs = h5py, configs
        self.found: dict[str, Module] = {}

    def layers(self, root: Any) -> dict[str, Module]:
        self._walk(root, "", 0)
        return self.found

    def _child(self, group: Any, name: str) -> Any:
        """A member that lies in this very file."""
        if not isinstance(group.get(name, getlink=True), self.h5py.HardLink):
            raise ValueError(f"{group.name}/{name}: expected a part of the file itself, got a link")
        return group[name]

    def _groups(self, group: Any) -> dict[str, Any]:
        members = {name: self._child(group, name) for name in group}
        return {name: one for name, one in members.items() if isinstance(one, self.h5py.Group)}

    def _walk(self, group: Any, name: str, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise ValueError(f"{group.name}: expected at most {_MAX_DEPTH} levels of groups")
        members = self._groups(group)
        if "forward_layer" in members and "backward_layer" in members:
            pair = [self._direction(members[f"{which}_layer"]) for which in ("forward", "backward")]
            if pair[0] is not None and pair[1] is not None and pair[0][0] == pair[1][0]:
                self._add(name, members, pair[0][0], [pair[0][1], pair[1][1]])
                return
        elif (single := self._direction(group)) is not None:
            self._add(name, members, single[0], [single[1]])
            return
        for key, member in members.items():
            self._walk(member, key, depth + 1)

    def _direction(self, layer: Any) -> tuple[str, dict[str, Any]] | None:
        """(kind, arrays) of a layer with one recurrent cell; None for any other group."""
        members = self._groups(layer)
        cell = self._groups(members["cell"]) if "cell" in members else {}
        if "vars" not in cell:
            return None
        arrays = [self._array(cell["vars"], name) for name in sorted(cell["vars"])]
        if len(arrays) not in (2, 3) or any(one.ndim != 2 for one in arrays[:2]):
            return None
        units, wide = arrays[1].shape
        kind = next((kind for kind, gates in _CELLS.items() if wide == gates * units), None)
        if kind is None:
            raise ValueError(f"{layer.name}: expected a recurrent kernel (H, G*H), got shape {arrays[1].shape}")
        return kind, {"kernel": arrays[0], "recurrent": arrays[1], "bias": arrays[2] if len(arrays) == 3 else None}

    def _array(self, group: Any, name: str) -> Array:
        """A dataset whose bytes all lie in the file: no external storage, no fill value for what is missing."""
        data = self._child(group, name)
        label = f"{group.name}/{name}"
        if not isinstance(data, self.h5py.Dataset) or data.is_virtual or data.external:
            raise ValueError(f"{label}: expected a dataset stored in the file itself")
        if data.dtype not in (np.dtype("float32"), np.dtype("float64")):
            raise ValueError(f"{label}: expected float32 or float64, got {data.dtype}")
        nbytes = data.size * data.dtype.itemsize if data.size is not None else -1
        if data.chunks is not None or data.id.get_storage_size() != nbytes:
            raise ValueError(f"{label}: expected {nbytes} bytes in one piece, got {data.id.get_storage_size()}")
        return np.asarray(data[()])

    def _add(self, group: str, members: Mapping[str, Any], kind: str, directions: list[Mapping[str, Any]]) -> None:
        """Name the layer as Keras does (the attribute of its own vars) and build it with its config."""
        given = members["vars"].attrs.get("name") if "vars" in members else None
        name = given if isinstance(given, str) else group
        config = self._config(name, kind)
        if name in self.found:
            raise ValueError(f"{name}: expected one layer of that name")
        self.found[name] = layer_of(kind, directions, config)

    def _config(self, name: str, kind: str) -> Mapping[str, Any]:
        """The layer's own config, or that of the layer which Bidirectional or RNN wraps; empty without configs."""
        node: Any = (self.configs or {}).get(name)
        if node is None:
            return {}
        config = node["config"]
        wrapped = config.get("layer") if node["class_name"] == "Bidirectional" else config.get("cell")
        if node["class_name"] == "Bidirectional" and config.get("merge_mode", "concat") != "concat":
            raise ValueError(f"{name}: expected Bidirectional with merge_mode concat, got {config['merge_mode']!r}")
        if isinstance(wrapped, dict) and isinstance(wrapped.get("config"), dict):
            config = {**wrapped["config"], "go_backwards": config.get("go_backwards", False)}
        return config


# ---- running Keras's layers -----------------------------------------------------------------------------------------

_undo: list[tuple[Any, str, Any]] = []


def enable() -> None:
    """Run Keras 3's LSTM and GRU on the engine, on its numpy or torch backend, until disable().

    What the engine does not cover (masks that are not right-padded, recurrent_dropout, activations of one's own)
    goes on as Keras has it. ValueError on another backend.
    """
    import keras
    from keras.src import backend

    from rnn_core import _keras_hook

    name = keras.backend.backend()
    if name not in ("numpy", "torch"):
        raise ValueError(f"keras: expected the numpy or torch backend, got {name}")
    if _undo:
        return
    for kind, layer in (("lstm", keras.layers.LSTM), ("gru", keras.layers.GRU)):
        _put(backend, kind, _keras_hook.hook(name, kind, getattr(backend, kind)))
        _put(layer, "inner_loop", _keras_hook.inner_loop(layer.inner_loop))


def _put(owner: Any, name: str, value: Any) -> None:
    _undo.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)


def disable() -> None:
    """Give Keras its own LSTM and GRU back."""
    while _undo:
        setattr(*_undo.pop())
