"""The decoder's training pass with input feeding: arrays for the compiled step loop (src/_feeding.pyx)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_core import _feeding
from rnn_core._plan import longest_first
from rnn_core.module import aligned_zeros
from rnn_core.sequences import Ragged, Sequences

Array = NDArray[Any]
_DZ = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 4}  # gradients of a unit's pre-activations


def forward(decoder: Any, inputs: Ragged, embedded: Array, state: Any, memory: Array, source_lengths: Array,
            train: bool) -> tuple[Array, Any]:
    """(a_t of every token (tokens, A), tape). embedded (tokens, E) as the first layer is to read it."""
    from rnn_core.seq2seq_decode import plan_of

    plan, a = plan_of(decoder), _places(inputs.lengths, source_lengths)
    a["units"] = plan.whole(decoder.hidden_size)
    keys, keys_tape = decoder.attention.project(memory)
    n, hidden, size = len(embedded), decoder.hidden_size, decoder.attention_size
    dtype, tokens = decoder.dtype, a["tokens"]
    x = np.empty((n, embedded.shape[1] + size), dtype)
    x[:, : embedded.shape[1]] = embedded[tokens]
    a.update(keys=keys, memory=memory, weights=np.empty(int((inputs.lengths * source_lengths).sum()), dtype),
             joined=np.empty((n, memory.shape[1] + hidden), dtype), result=np.empty((n, size), dtype),
             queries=np.empty((n, hidden), dtype), layers=_layers(decoder, a, x, state, train))
    loop = _feeding.Loop(plan, decoder.rnn._weights(), a, embedded.shape[1])
    if n:
        loop.forward()
    found = np.empty_like(a["result"])
    found[tokens] = a["result"]
    return found, (loop, a, keys_tape)


def _places(lengths: Array, source_lengths: Array) -> dict[str, Any]:
    """Which tokens and sentences the rows are: sentences from the longest to the shortest, tokens by step."""
    order = longest_first(lengths)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    begins = np.cumsum(lengths) - lengths
    step = np.arange(lengths.sum()) - np.repeat(begins, lengths)
    tokens = np.lexsort((np.repeat(rank, lengths), step))  # the caller's token of each row
    active = np.bincount(step, minlength=1).astype(np.int64)
    weights = lengths * source_lengths
    return {
        "order": order, "tokens": tokens, "step": step[tokens], "row": np.repeat(rank, lengths)[tokens],
        "active": active, "first": np.cumsum(active) - active, "steps": lengths[order].astype(np.int64),
        "source_lengths": source_lengths[order], "source_begins": (np.cumsum(source_lengths) - source_lengths)[order],
        "weight_begins": (np.cumsum(weights) - weights)[order],
    }


def _layers(decoder: Any, a: dict[str, Any], x: Array, state: Any, train: bool) -> list[dict[str, Any]]:
    """The arrays of each layer; padded columns are zero."""
    rnn, n, batch, hidden = decoder.rnn, len(x), len(a["order"]), decoder.hidden_size
    units = a["units"]  # rows of states are whole vectors
    h0, c0 = state if isinstance(state, tuple) else (state, None)
    masks: list[Any] = [None] * rnn.num_layers
    if train and rnn.dropout and rnn.num_layers > 1:
        spread = rnn._masks(Sequences(x, "time_major", len(a["active"]), batch, None, rnn.dtype))
        masks[:-1] = [np.ascontiguousarray(mask[a["step"], a["order"][a["row"]]]) for mask in spread]
    found = []
    for layer in range(rnn.num_layers):
        first, cell = aligned_zeros((batch, units), rnn.dtype), aligned_zeros((batch, units), rnn.dtype)
        first[:, :hidden] = h0[layer][a["order"]]
        if c0 is not None:
            cell[:, :hidden] = c0[layer][a["order"]]
        found.append({
            "x": x if layer == 0 else np.empty((n, hidden), rnn.dtype), "h": aligned_zeros((n, units), rnn.dtype),
            "h0": first, "c": cell, "saved": aligned_zeros((n, units * rnn._gates), rnn.dtype),
            "saved_unit": aligned_zeros((n, units), rnn.dtype) if rnn._gates > 1 else None, "mask": masks[layer],
        })
    return found


def backward(decoder: Any, tape: Any, dresult: Array) -> tuple[Array, Any, Array]:
    """(d embedded, dstate, dmemory) of the gradients of a_t (tokens, A); adds into grads."""
    loop, a, keys_tape = tape
    rnn, attention, hidden, dtype = decoder.rnn, decoder.attention, decoder.hidden_size, decoder.dtype
    batch, n = len(a["order"]), len(dresult)
    units, width = a["units"], a["layers"][0]["x"].shape[1]
    grads = rnn._arrays({name: rnn._grad(name) for name in rnn._buffers})
    layers = [{
        "dz": np.empty((n, _DZ[rnn._cell()] * hidden), dtype), "dh": aligned_zeros((batch, units), dtype),
        "dc": aligned_zeros((batch, units), dtype), "dy": np.zeros((batch, hidden), dtype),
        "dw": w, "dr": r, "db_ih": b_ih, "db_hh": b_hh,
    } for w, r, b_ih, b_hh, _ in grads]
    d = {
        "result": np.ascontiguousarray(dresult[a["tokens"]]), "joined": np.empty_like(a["joined"]),
        "queries": np.zeros_like(a["queries"]), "inputs": np.empty((n, width), dtype),
        "weights": np.empty_like(a["weights"]), "keys": np.zeros_like(a["keys"]),
        "memory": np.zeros_like(a["memory"]), "v": np.zeros((batch, hidden), dtype), "layers": layers,
    }
    query = attention.query if attention.kind == "additive" else None
    loop.backward(d, decoder.combine._buffers["weight"].view, None if query is None else query._buffers["weight"].view)
    decoder.combine.backward(a["joined"], d["result"], need_dx=False)
    if query is not None:
        states = np.ascontiguousarray(a["joined"][:, -hidden:])
        query.backward(states, d["queries"], need_dx=False)
        grad = attention._grad("v")
        inverse = np.argsort(a["order"])  # summed in the caller's order
        grad += d["v"][inverse].sum(0)
    projected = d["keys"] if attention.kind == "dot" else attention.keys.backward(keys_tape, d["keys"])
    dembedded = np.empty((n, width - decoder.attention_size), dtype)
    dembedded[a["tokens"]] = d["inputs"][:, : dembedded.shape[1]]
    return dembedded, _state(decoder, a, layers), d["memory"] + projected


def _state(decoder: Any, a: dict[str, Any], layers: list[dict[str, Any]]) -> Any:
    """The gradient of the first state, in the caller's order."""
    parts = []
    for name in ("dh", "dc"):
        found = np.empty((len(layers), len(a["order"]), decoder.hidden_size), decoder.dtype)
        for layer, arrays in enumerate(layers):
            found[layer, a["order"]] = arrays[name][:, : decoder.hidden_size]
        parts.append(found)
    return tuple(parts) if decoder.rnn._cell() == "lstm" else parts[0]
