"""Layers and cells against PyTorch in float64: outputs, states, all gradients; packed sequences against lengths."""

import numpy as np
import pytest
import reference
from cases import BACKWARD, FORWARD, KINDS, Case, all_close, cell_of, close, parts, public

import rnn_core as rc

torch = pytest.importorskip("torch")
PEER_KINDS = [kind for kind in KINDS if kind != "gru_v1"]  # PyTorch has GRU with reset_after only
LAYERS, CELLS = 80, 20  # random configurations a kind: 400 in all

pytestmark = pytest.mark.peers


@pytest.fixture(autouse=True)
def one_torch_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tensor(array):
    return torch.tensor(np.asarray(array, np.float64), requires_grad=True)


def loaded(module, params):
    """A PyTorch module in float64 with our weights: the keys must be the same."""
    module = module.double()
    module.load_state_dict({key: torch.tensor(np.asarray(p, np.float64)) for key, p in params.items()})
    return module


def torch_options(case):
    name, options = KINDS[case.kind]
    return name, {key: value for key, value in options.items() if key != "reset_after"}


def torch_layer(case, params):
    name, options = torch_options(case)
    if case.proj_size:
        options["proj_size"] = case.proj_size
    module = getattr(torch.nn, name)(
        case.input_size,
        case.hidden_size,
        case.num_layers,
        bias=case.bias,
        bidirectional=case.bidirectional,
        **options,
    )
    return loaded(module, params)


def torch_run(module, case, x, state):
    """y and the final state; ragged batches go through PackedSequence."""
    if case.lengths is None:
        return module(x, public(state))
    lengths = torch.tensor(case.lengths)
    packed = torch.nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, final = module(packed, public(state))
    return torch.nn.utils.rnn.pad_packed_sequence(y, total_length=case.T)[0], final


def torch_results(case, params, arrays):
    """(y, *final), (dx, *dstate), grads: from PyTorch, in float64."""
    x, state, dy, dstate = arrays
    module = torch_layer(case, params)
    x, state = tensor(x), None if state is None else tuple(map(tensor, state))
    y, final = torch_run(module, case, x, state)
    loss = (y * torch.tensor(dy, dtype=torch.float64)).sum()
    for s, d in zip(parts(final), dstate):
        loss = loss + (s * torch.tensor(d, dtype=torch.float64)).sum()
    loss.backward()
    back = (x, *(state or ()))
    return (
        tuple(a.detach().numpy() for a in (y, *parts(final))),
        tuple(a.grad.numpy() for a in back),
        {key: p.grad.numpy() for key, p in module.named_parameters()},
    )


def peer_case(kind, seed):
    """PyTorch takes neither T = 0 nor an empty sequence in a batch."""
    case = Case.random(kind, 7000 + seed)
    fixed = {"T": max(1, case.T)}
    if case.lengths is not None:
        fixed["lengths"] = tuple(max(1, n) for n in case.lengths)
    return Case.random(kind, 7000 + seed, **fixed)


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("kind", PEER_KINDS)
def test_layers(kind, block):
    for seed in range(block, LAYERS, 4):
        case = peer_case(kind, seed)
        for dtype in FORWARD:
            layer = case.layer(dtype)
            x, state, dy, dstate = case.arrays(dtype)
            if dtype == "float32":
                out, back, grads = torch_results(case, layer.params, (x, state, dy, dstate))
            y, final = layer(x, public(state), case.lengths)
            all_close((y, *parts(final)), out, FORWARD[dtype], dtype, case)
            y, final, tape = layer.forward(x, public(state), case.lengths)
            all_close((y, *parts(final)), out, FORWARD[dtype], "forward", dtype, case)
            dx, dinitial = layer.backward(tape, dy, public(dstate))
            all_close((dx, *parts(dinitial))[: len(back)], back, BACKWARD[dtype], "back", dtype, case)
            all_close(layer.grads, grads, BACKWARD[dtype], "grads", dtype, case)


def check_cell(case):
    name, options = torch_options(case)
    for dtype in FORWARD:
        cell = cell_of(case.layer(dtype), case, dtype)
        x, state, _, dstate = case.arrays(dtype)
        x, state, dstate = x[0], tuple(s[0] for s in state), tuple(s[0] for s in dstate)
        if dtype == "float32":
            module = getattr(torch.nn, name + "Cell")(case.input_size, case.hidden_size, bias=case.bias, **options)
            module = loaded(module, cell.params)
            inputs = (tensor(x), *map(tensor, state))
            want = parts(module(inputs[0], public(inputs[1:])))
            sum((s * torch.tensor(d, dtype=torch.float64)).sum() for s, d in zip(want, dstate)).backward()
            want = tuple(s.detach().numpy() for s in want)
            back = tuple(a.grad.numpy() for a in inputs)
            grads = {key: p.grad.numpy() for key, p in module.named_parameters()}
        all_close(parts(cell(x, public(state))), want, FORWARD[dtype], dtype, case)
        all_close(parts(cell.step(x, public(state))), want, FORWARD[dtype], "step", dtype, case)
        _, tape = cell.forward(x, public(state))
        dx, dinitial = cell.backward(tape, public(dstate))
        all_close((dx, *parts(dinitial)), back, BACKWARD[dtype], "back", dtype, case)
        all_close(cell.grads, grads, BACKWARD[dtype], "grads", dtype, case)


@pytest.mark.parametrize("kind", PEER_KINDS)
def test_cells(kind):
    fixed = {"num_layers": 1, "bidirectional": False, "proj_size": 0, "T": 1, "lengths": None, "with_state": True}
    for seed in range(CELLS):
        check_cell(Case.random(kind, 8000 + seed, **fixed))


@pytest.mark.parametrize("kind", PEER_KINDS)
def test_the_reference(kind):
    for seed in range(20):
        case = peer_case(kind, 100 + seed)
        params = case.layer().params
        arrays = x, state, dy, dstate = case.arrays()
        out, back, grads = torch_results(case, params, arrays)
        y, final, tape = reference.forward(case.cell(), params, x, state, case.lengths)
        dx, dinitial, dparams = reference.backward(tape, dy, dstate)
        all_close((y, *final), out, 1e-13, case)
        all_close((dx, *dinitial)[: len(back)], back, 1e-12, case)
        all_close(dparams, grads, 1e-12, case)


@pytest.mark.parametrize("kind", PEER_KINDS)
def test_large(kind):
    sizes = {
        "input_size": 128,
        "hidden_size": 256,
        "num_layers": 2,
        "proj_size": 0,
        "T": 12,
        "B": 5,
        "lengths": (12, 3, 7, 1, 9),
    }
    case = Case.random(kind, 9000, **sizes)
    layer = case.layer()
    arrays = x, state, dy, dstate = case.arrays()
    out, back, grads = torch_results(case, layer.params, arrays)
    y, final, tape = layer.forward(x, public(state), case.lengths)
    all_close((y, *parts(final)), out, FORWARD["float32"], case)
    dx, dinitial = layer.backward(tape, dy, public(dstate))
    close(dx, back[0], BACKWARD["float32"], "dx", case)
    all_close(layer.grads, grads, BACKWARD["float32"], case)


@pytest.mark.parametrize("name", ["RNN", "LSTM", "GRU"])
def test_state_dicts_go_both_ways(name):
    """Keys, order and shapes are equal, so a checkpoint of one loads into the other."""
    ours, theirs = getattr(rc, name)(3, 5, 2, bidirectional=True), getattr(torch.nn, name)(3, 5, 2, bidirectional=True)
    assert [(k, p.shape) for k, p in ours.params.items()] == [(k, tuple(p.shape)) for k, p in theirs.named_parameters()]
    ours.load_state_dict({key: p.numpy() for key, p in theirs.state_dict().items()})
    theirs.load_state_dict({key: torch.from_numpy(p) for key, p in ours.state_dict().items()})


# ---- layer normalisation in the cell, composed of PyTorch's own operations


def norm(p, which, a, gates):
    """Each gate of (B, gates H) by itself."""
    gain, shift = p[f"weight_ln_{which}_l0"], p[f"bias_ln_{which}_l0"]
    parts = a.view(len(a), gates, -1)
    hat = torch.nn.functional.layer_norm(parts, parts.shape[-1:])
    return (hat * gain.view(gates, -1) + shift.view(gates, -1)).chunk(gates, 1)


def normed_step(kind, p, x, h, c):
    gates = {"lstm": 4, "gru": 3}.get(kind, 1)
    a = norm(p, "ih", x @ p["weight_ih_l0"].T + p["bias_ih_l0"], gates)
    q = norm(p, "hh", h @ p["weight_hh_l0"].T + p["bias_hh_l0"], gates)
    sums = [(one + other)[:, 0] for one, other in zip(a, q)]
    if kind == "lstm":
        i, f, g, o = sums
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * norm(p, "c", c, 1)[0][:, 0].tanh(), c
    if kind == "gru":
        n, z = (a[2][:, 0] + sums[0].sigmoid() * q[2][:, 0]).tanh(), sums[1].sigmoid()
        return (1 - z) * n + z * h, c
    return sums[0].tanh() if kind == "rnn_tanh" else sums[0].relu(), c


@pytest.mark.parametrize("kind", PEER_KINDS)
def test_layer_norm_is_that_of_torch(kind):
    for seed in range(5):
        fixed = {"num_layers": 1, "bidirectional": False, "bias": True, "proj_size": 0, "lengths": None}
        case = Case.random(kind, 500 + seed, with_state=True, T=6, hidden_size=5 + 6 * seed, **fixed)
        layer = case.layer("float64", layer_norm=True)
        x, state, dy, dstate = case.arrays("float64")
        p = {key: tensor(value) for key, value in layer.params.items()}
        inputs, start = tensor(x), [tensor(s) for s in state]
        h, c = start[0][0], start[-1][0]
        outputs = []
        for t in range(case.T):
            h, c = normed_step(kind, p, inputs[t], h, c)
            outputs.append(h)
        last = (h, c)[: len(state)]
        loss = (torch.stack(outputs) * torch.tensor(dy)).sum()
        (loss + sum((s * torch.tensor(d[0])).sum() for s, d in zip(last, dstate))).backward()
        y, _, tape = layer.forward(x, public(state))
        dx, dinitial = layer.backward(tape, dy, public(dstate))
        close(y, torch.stack(outputs).detach().numpy(), 10 * FORWARD["float64"], case)
        found = {"dx": dx, **{str(n): d for n, d in enumerate(parts(dinitial))}, **layer.grads}
        wanted = {"dx": inputs, **{str(n): s for n, s in enumerate(start)}, **p}
        all_close(found, {k: v.grad.numpy() for k, v in wanted.items()}, 100 * BACKWARD["float64"], case)
