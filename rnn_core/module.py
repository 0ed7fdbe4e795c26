"""Module: a node in a tree of layers, with parameters and gradients under PyTorch's dotted keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_core import checks
from rnn_core._parameters import Buffer, door
from rnn_core._tensors import Tensors, by_dtype

_CACHE_LINE = 64
_structure = 0  # moves whenever any tree or its gradients change, so that what is flattened is made once


class LoadResult(NamedTuple):
    """What load_state_dict(strict=False) passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """A plain zeroed array that starts on a cache line, so that no vector load crosses one."""
    found = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * found.itemsize
    memory = np.zeros(size + _CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % _CACHE_LINE
    return memory[start : start + size].view(found).reshape(shape)


class Module:
    """Base of every layer and model.

    A subclass makes its parameters with `_add_parameter` and its children by assigning them to attributes
    (or with `_add_child`); `__call__` is inference and keeps nothing, `forward` gives (y, tape), and
    `backward(tape, dy, need_dx=True)` adds into `grads` and gives dx.

    `_transient` names attributes that are not worth keeping in a pickle (plans, packed weights); they are
    None in the copy.
    """

    _transient: tuple[str, ...] = ()

    def __init__(self, dtype: Any = "float32") -> None:
        self.dtype = checks.dtype(dtype)
        self._buffers: dict[str, Buffer] = {}
        self._children: dict[str, Module] = {}
        self._fresh()

    def _fresh(self) -> None:
        self._grads: dict[str, NDArray[Any]] = {}
        self._flat_at = -1  # the structure that the flattened dictionaries belong to
        self._flat_params: dict[str, NDArray[Any]] = {}
        self._flat_grads: dict[str, NDArray[Any]] | None = None
        self._made_grads: list[Tensors] | None = None  # those that have been needed so far

    # ---- building the tree --------------------------------------------------------------------------------

    def _add_parameter(self, name: str, array: ArrayLike) -> Buffer:
        """Make parameter `name` with the values of `array`; its dtype is the module's."""
        if not name or "." in name or name in self._buffers or name in self._children:
            raise ValueError(f"parameter name: expected a new name without dots, got {name!r}")
        values = np.asarray(array)
        buffer = Buffer(values.shape, self.dtype)
        with buffer.writing() as out:
            out[...] = values
        self._buffers[name] = buffer
        _changed()
        return buffer

    def _add_child(self, name: str, child: Module) -> None:
        """Make `child` a part of the tree: its keys appear as `name.key`."""
        if not isinstance(child, Module):
            raise TypeError(f"{name}: expected a Module, got {type(child).__name__}")
        if not name or "." in name or name in self._buffers:
            raise ValueError(f"child name: expected a name without dots that no parameter has, got {name!r}")
        if any(node is self for _, node in child._tree()):
            raise ValueError(f"{name}: a module cannot be a part of itself")
        self._children[name] = child
        _changed()

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Module):
            self._add_child(name, value)
        elif name in self.__dict__.get("_children", ()):
            del self._children[name]
            _changed()
        object.__setattr__(self, name, value)

    @property
    def children(self) -> dict[str, Module]:
        """The direct children by name, in the order in which they were added."""
        return dict(self._children)

    def _tree(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(key prefix, module) of this module and of everything below it."""
        yield prefix, self
        for name, child in self._children.items():
            yield from child._tree(f"{prefix}{name}.")

    def _named_buffers(self) -> Iterator[tuple[str, Module, str]]:
        """(dotted key, its module, its name there); a module that stands in two places comes twice."""
        for prefix, node in self._tree():
            for name in node._buffers:
                yield prefix + name, node, name

    def _distinct(self) -> Iterator[tuple[str, Module, str]]:
        seen: set[int] = set()
        for key, node, name in self._named_buffers():
            if id(node._buffers[name]) not in seen:
                seen.add(id(node._buffers[name]))
                yield key, node, name

    # ---- parameters and gradients -------------------------------------------------------------------------

    def _flatten(self) -> None:
        """Forget what was flattened of another structure."""
        if self._flat_at != _structure:
            self._flat_params = {key: node._buffers[name].view for key, node, name in self._distinct()}
            self._flat_grads = self._made_grads = None
            self._flat_at = _structure

    @property
    def params(self) -> dict[str, NDArray[Any]]:
        """Read-only arrays under PyTorch's keys; a module that stands in two places counts once.

        Write them by load_state_dict, assign or an optimiser.
        """
        self._flatten()
        return self._flat_params.copy()

    @property
    def grads(self) -> dict[str, NDArray[Any]]:
        """Writable arrays under the keys of `params`, into which backward adds; always the same arrays."""
        self._flatten()
        if self._flat_grads is None:
            self._flat_grads = {key: node._grad(name) for key, node, name in self._distinct()}
        return self._flat_grads.copy()

    def _grad(self, name: str) -> NDArray[Any]:
        """The gradient array of an own parameter, made on first use: inference never pays for it."""
        grad = self._grads.get(name)
        if grad is None:
            buffer = self._buffers[name]
            grad = self._grads[name] = aligned_zeros(buffer.shape, buffer.dtype)
            _changed()
        return grad

    def zero_grad(self) -> None:
        """Set every gradient to zero, in place."""
        self._flatten()
        if self._made_grads is None:
            made = {id(grad): grad for _, node in self._tree() for grad in node._grads.values()}
            self._made_grads = by_dtype(list(made.values()))
        for tensors in self._made_grads:
            tensors.zero()

    def num_parameters(self) -> int:
        """How many numbers the tree learns; shared ones count once."""
        return sum(node._buffers[name].size for _, node, name in self._distinct())

    # ---- saving, loading, writing -------------------------------------------------------------------------

    def state_dict(self) -> dict[str, NDArray[Any]]:
        """Copies of all parameters, keyed as PyTorch keys them."""
        return {key: node._buffers[name].view.copy() for key, node, name in self._named_buffers()}

    def spread(self, params: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """A state_dict of arrays under the keys of `params`: a shared parameter's array under each of its keys."""
        arrays = {id(node._buffers[name]): params[key] for key, node, name in self._distinct()}
        return {key: arrays[id(node._buffers[name])] for key, node, name in self._named_buffers()}

    def load_state_dict(self, mapping: Mapping[str, ArrayLike], strict: bool = True) -> LoadResult:
        """Copy the arrays of `mapping` into the parameters; every check comes before the first write.

        Shapes must be equal; other floating dtypes are converted (np.can_cast "same_kind"). With strict=False
        missing and unexpected keys are passed over and returned.
        ValueError names missing and unexpected keys and wrong shapes, TypeError wrong dtypes.
        """
        if not isinstance(mapping, Mapping):
            raise TypeError(f"load_state_dict: expected a mapping of keys to arrays, got {type(mapping).__name__}")
        targets = {key: node._buffers[name] for key, node, name in self._named_buffers()}
        missing = [key for key in targets if key not in mapping]
        result = LoadResult(missing, [str(key) for key in mapping if key not in targets])
        if strict and (result.missing_keys or result.unexpected_keys):
            raise ValueError(
                f"load_state_dict: {type(self).__name__} got other keys than expected; "
                f"missing: {result.missing_keys or 'none'}; unexpected: {result.unexpected_keys or 'none'}"
            )
        _write_all({key: (buffer, mapping[key]) for key, buffer in targets.items() if key in mapping})
        return result

    def assign(self, name: str, array: ArrayLike) -> None:
        """Overwrite parameter `name` (a dotted key) with `array` of the same shape."""
        for key, node, own in self._named_buffers():
            if key == name:
                _write_all({key: (node._buffers[own], array)})
                return
        raise ValueError(f"assign: expected one of {list(self.params)}, got {name!r}")

    def to_torch(self) -> Any:
        """A torch.nn module on this engine with copies of the weights: LSTM, GRU, RNN and their cells.

        TypeError for other modules, ValueError for options that torch.nn does not have.
        """
        from rnn_core.torch import to_torch

        return to_torch(self)

    # ---- copies and text ----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in ("_grads", "_flat_at", "_flat_params", "_flat_grads", "_made_grads"):
            state.pop(name)
        state.update((name, None) for name in self._transient)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fresh()

    def _describe(self) -> str:
        """The constructor's arguments, for repr."""
        return ""

    def __repr__(self) -> str:
        name = type(self).__name__
        if not self._children:
            return f"{name}({self._describe()})"
        lines = [f"({key}): {child!r}".replace("\n", "\n  ") for key, child in self._children.items()]
        return f"{name}({self._describe()}\n  " + "\n  ".join(lines) + "\n)"


def _changed() -> None:
    global _structure
    _structure += 1


def _loadable(key: str, array: ArrayLike, buffer: Buffer) -> NDArray[Any]:
    """`array` as an ndarray fit for `buffer`; raises ValueError (shape) or TypeError (dtype)."""
    try:
        found = np.asarray(array)
    except ValueError:
        raise TypeError(f"{key}: expected a {buffer.dtype.name} array, got {type(array).__name__}") from None
    if found.shape != buffer.shape:
        raise ValueError(f"{key}: expected shape {buffer.shape}, got {found.shape}")
    kinds = "f" if hasattr(array, "dtype") else "iuf"  # a plain list may hold whole numbers
    if found.dtype.kind not in kinds or not np.can_cast(found.dtype, buffer.dtype, "same_kind"):
        raise TypeError(f"{key}: expected dtype {buffer.dtype.name}, got {found.dtype}")
    return found


def _write_all(work: Mapping[str, tuple[Buffer, ArrayLike]]) -> None:
    """Check everything, then write everything."""
    found: dict[str, NDArray[Any]] = {}
    faults: list[Exception] = []
    for key, (buffer, array) in work.items():
        try:
            found[key] = _loadable(key, array, buffer)
        except (TypeError, ValueError) as fault:
            faults.append(fault)
    if faults:
        kind = TypeError if all(isinstance(fault, TypeError) for fault in faults) else ValueError
        raise kind("; ".join(str(fault) for fault in faults))
    for key, array in found.items():
        found[key] = _unshared(array)
    for key, (buffer, _) in work.items():
        with buffer.writing() as out:
            out[...] = found[key]


def _unshared(array: NDArray[Any]) -> NDArray[Any]:
    """A copy where `array` is itself a parameter, whose values could change before they are read."""
    try:
        door(array)
    except TypeError:
        return array
    return array.copy()
