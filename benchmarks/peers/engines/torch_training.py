"""PyTorch forward + backward: dense, ragged in every way that its users do it, and a whole training step."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ..engine import Arrays, Variant
from ..rows import Row


def tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    """The same memory as tensors."""
    return {key: torch.from_numpy(array) for key, array in arrays.items()}


def inputs_and_states(inputs: Arrays):
    """x and the initial state, h or (h, c), of each input."""
    held = tensors(inputs)
    states = list(zip(held["h0"], held["c0"])) if "c0" in held else list(held["h0"])
    return list(held["x"]), states


def module(row: Row, weights: Arrays) -> nn.Module:
    """nn.LSTM, nn.GRU or nn.RNN with these weights."""
    found = getattr(nn, row.cell)(row.I, row.H, row.L, bidirectional=row.D == 2)
    found.load_state_dict(tensors(weights))
    return found


def _trainer(model, leaves, dy, forward, canonical=lambda k, dx: dx, family="") -> Variant:
    """forward(k) -> y, then backward from dy[k]; gradients of the leaves x and of all parameters.

    canonical(k, dx) undoes what was done to x: it becomes (T, B, I) in the order of the batch.
    """
    params = dict(model.named_parameters())

    def call(k):
        leaves[k].grad = None
        for p in params.values():
            p.grad = None
        forward(k).backward(dy[k])
        return k

    def read(k):
        grads = {f"d{key}": p.grad.numpy().copy() for key, p in params.items()}
        return _both_names(grads) | {"dx": canonical(k, leaves[k].grad).numpy().copy()}

    return Variant(call, read, family=family)


def _leaves(x) -> list[torch.Tensor]:
    """The same memory, with gradients."""
    return [one.detach().requires_grad_() for one in x]


def dense(row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
    """One module call on the padded batch; a ragged row's masked dy makes the gradients right."""
    model = module(row, weights)
    x, states = inputs_and_states(inputs)
    x, dy = _leaves(x), list(torch.from_numpy(inputs["dy"]))
    return {"module": _trainer(model, x, dy, lambda k: model(x[k], states[k])[0])}


# ---- Ragged ----------------------------------------------------------------------------------------------------------


def ragged(row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
    """Packed in the batch's order, packed after sorting before the clock starts, packed before the clock; padded."""
    by_length, order = _sorted(inputs)
    back = [torch.from_numpy(np.argsort(one)) for one in order]

    def whole(k, dx):
        return dx[:, back[k]]

    padded = _both_padded(row, weights, inputs) if row.D == 2 else dense(row, weights, inputs)["module"]
    padded.family = "padded"
    return {
        "packed, batch order": _packed(row, weights, inputs, False),
        "packed, sorted": _packed(row, weights, by_length, True, whole),
        "packed before": _prepacked(row, weights, by_length, whole),
        "padded": padded,
    }


def _sorted(inputs: Arrays) -> tuple[Arrays, list[np.ndarray]]:
    """The inputs with the sequences of each batch by falling length, and the order taken."""
    order = [np.argsort(-one, kind="stable") for one in inputs["lengths"]]
    found = {}
    for key, array in inputs.items():
        axis = 0 if key == "lengths" else 1
        found[key] = np.stack([np.take(one, o, axis=axis) for one, o in zip(array, order)])
    return found, order


def _packed(row, weights, inputs, enforce_sorted, canonical=lambda k, dx: dx) -> Variant:
    model = module(row, weights)
    x, states = inputs_and_states(inputs)
    x, dy, lengths = _leaves(x), torch.from_numpy(inputs["dy"]), torch.from_numpy(inputs["lengths"])

    def forward(k):
        pack = pack_padded_sequence(x[k], lengths[k], enforce_sorted=enforce_sorted)
        return pad_packed_sequence(model(pack, states[k])[0], total_length=row.T)[0]

    return _trainer(model, x, dy, forward, canonical, "packed")


def _prepacked(row, weights, inputs, canonical) -> Variant:
    model = module(row, weights)
    x, states = inputs_and_states(inputs)
    lengths = torch.from_numpy(inputs["lengths"])
    packs = [pack_padded_sequence(one, n) for one, n in zip(x, lengths)]
    dy = [pack_padded_sequence(one, n).data for one, n in zip(torch.from_numpy(inputs["dy"]), lengths)]
    leaves = _leaves(pack.data for pack in packs)

    def forward(k):
        return model(PackedSequence(leaves[k], packs[k].batch_sizes), states[k])[0].data

    def padded(k, dx):
        return canonical(k, pad_packed_sequence(PackedSequence(dx, packs[k].batch_sizes), total_length=row.T)[0])

    return _trainer(model, leaves, dy, forward, padded, "packed")


def _both_padded(row: Row, weights: Arrays, inputs: Arrays) -> Variant:
    """Two padded modules, the second on sequences that are each turned round within their length."""
    backward = {key for key in weights if key.endswith("_reverse")}
    names = {"f": weights.keys() - backward, "r": backward}
    model = nn.ModuleDict({key: getattr(nn, row.cell)(row.I, row.H) for key in names})
    for key, held in names.items():
        model[key].load_state_dict(tensors({name.removesuffix("_reverse"): weights[name] for name in held}))
    x, states = inputs_and_states(inputs)
    x, dy = _leaves(x), torch.from_numpy(inputs["dy"])
    t, b = np.arange(row.T)[:, None], torch.arange(row.B)
    turned = [torch.from_numpy(np.where(t < n, n - 1 - t, t)) for n in inputs["lengths"]]

    def part(state, d):
        return tuple(s[d : d + 1] for s in state) if isinstance(state, tuple) else state[d : d + 1]

    def forward(k):
        there = model["f"](x[k], part(states[k], 0))[0]
        back = model["r"](x[k][turned[k], b], part(states[k], 1))[0][turned[k], b]
        return torch.cat([there, back], 2)

    return _trainer(model, x, dy, forward)


def _both_names(grads: Arrays) -> Arrays:
    """`df.weight_ih_l0` and `dr.weight_ih_l0` under the names of one bidirectional module."""
    renamed = {key: key.removeprefix("df.").removeprefix("dr.") for key in grads}
    return {
        key if name == key else "d" + name + ("_reverse" if key.startswith("dr.") else ""): grads[key]
        for key, name in renamed.items()
    }


# ---- A whole training step -------------------------------------------------------------------------------------------


class CharModel(nn.Module):
    """Embedding -> stacked recurrent layers -> Linear, as rnn_core's character model."""

    def __init__(self, row: Row, weights: Arrays):
        super().__init__()
        self.embedding = nn.Embedding(row.V, row.I)
        self.rnn = getattr(nn, row.cell)(row.I, row.H, row.L)
        self.head = nn.Linear(row.H, row.V)
        self.load_state_dict({key if "." in key else "rnn." + key: a for key, a in tensors(weights).items()})

    def forward(self, tokens, state):
        y, state = self.rnn(self.embedding(tokens), state)
        return self.head(y), state


def _step(row: Row, weights: Arrays, inputs: Arrays, **adam) -> Variant:
    model = CharModel(row, weights)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3, **adam)
    tokens = torch.from_numpy(inputs["tokens"])
    zero = torch.zeros(row.L, row.B, row.H)
    carried = [(zero, zero) if row.cell == "LSTM" else zero]

    def call(k):
        optimiser.zero_grad()
        logits, state = model(tokens[k, :-1], carried[0])
        loss = cross_entropy(logits.reshape(-1, row.V), tokens[k, 1:].reshape(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        carried[0] = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        return loss.item()

    return Variant(call, lambda loss: {"loss": np.array([loss])})


def charlm(row: Row, weights: Arrays, inputs: Arrays) -> dict[str, Variant]:
    """Forward, loss, backward, clipping by norm and Adam, the state carried over; fused and foreach compete."""
    return {"fused": _step(row, weights, inputs, fused=True), "foreach": _step(row, weights, inputs, foreach=True)}
