"""The drop-in for torch.nn: PyTorch's own test of recurrent layers again, and what a module must do besides."""

import copy
import gc
import io
import itertools
import pickle
import weakref

import numpy as np
import pytest
import torch
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnn_core as rc
from rnn_core import torch as ours

pytestmark = [
    pytest.mark.peers,
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
    pytest.mark.filterwarnings("ignore:dropout option adds dropout"),
]
TOLERANCE = 5e-5
KINDS = {
    "LSTM": ("LSTM", {}),
    "LSTM projected": ("LSTM", {"proj_size": 3}),
    "GRU": ("GRU", {}),
    "RNN": ("RNN", {}),
    "RNN relu": ("RNN", {"nonlinearity": "relu"}),
}
CELLS = {"LSTMCell": {}, "GRUCell": {}, "RNNCell": {}, "RNNCell relu": {"nonlinearity": "relu"}}
FLAGS = (False, True)


@pytest.fixture(autouse=True)
def seeded():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def twins(name, *sizes, **options):
    """torch's module and ours with the same weights."""
    theirs, mine = getattr(torch.nn, name)(*sizes, **options), getattr(ours, name)(*sizes, **options)
    mine.load_state_dict(theirs.state_dict())
    return theirs, mine


def parts(state):
    return state if isinstance(state, tuple) else (state,)


def close(a, b, what=""):
    torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda text: f"{what}: {text}")


def run(module, x, state, pack):
    """Outputs, final states, and the gradients of everything."""
    x = x.clone().requires_grad_()
    state = None if state is None else tuple(s.clone().requires_grad_() for s in state)
    given = None if state is None else state if len(state) == 2 else state[0]
    y, final = module(pack(x), given)
    values = y.data if isinstance(y, PackedSequence) else y
    weight = torch.linspace(-1, 1, values.numel()).view_as(values)
    loss = (values * weight).sum() + sum((part**2).sum() for part in parts(final))
    module.zero_grad()
    loss.backward()
    found = {"y": values, "dx": x.grad}
    found.update({f"state {n}": part for n, part in enumerate(parts(final))})
    found.update({f"d{key}": p.grad for key, p in module.named_parameters()})
    found.update({f"dstate {n}": part.grad for n, part in enumerate(state or ())})
    return found


COMBINATIONS = list(itertools.product(KINDS, FLAGS, FLAGS, FLAGS, (0, 1), FLAGS, (None, "sorted", "any")))


def test_there_are_enough_combinations():
    assert len(COMBINATIONS) >= 200


@pytest.mark.parametrize("kind", KINDS)
def test_every_combination(kind):
    """bias, bidirectional, batch_first, dropout 0 and 1, given states, lengths: 96 of each kind."""
    name, options = KINDS[kind]
    for _, bias, both, first, dropout, with_state, ragged in (c for c in COMBINATIONS if c[0] == kind):
        what = f"{kind} bias={bias} both={both} first={first} dropout={dropout} state={with_state} {ragged}"
        module = twins(
            name, 4, 6, 2, bias=bias, bidirectional=both, batch_first=first, dropout=float(dropout), **options
        )
        x = torch.randn(3, 5, 4) if first else torch.randn(5, 3, 4)
        count, out = 4 if both else 2, options.get("proj_size", 6)
        state = (torch.randn(count, 3, out), torch.randn(count, 3, 6))[: 2 if name == "LSTM" else 1]
        lengths = {"sorted": [5, 4, 2], "any": [2, 5, 3]}.get(ragged)

        def pack(x, lengths=lengths, first=first, ragged=ragged):
            if lengths is None:
                return x
            return pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=ragged == "sorted")

        theirs, mine = (run(m, x, state if with_state else None, pack) for m in module)
        assert theirs.keys() == mine.keys()
        for key, value in theirs.items():
            close(mine[key], value, f"{what}: {key}")
        with torch.no_grad():
            plain = [m.eval()(pack(x))[0] for m in module]
        close(plain[1].data, plain[0].data, f"{what}: inference")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bias", FLAGS)
@pytest.mark.parametrize("batched", FLAGS)
def test_cells(cell, bias, batched):
    theirs, mine = twins(cell.split()[0], 4, 6, bias=bias, **CELLS[cell])
    x = torch.randn(3, 4) if batched else torch.randn(4)
    h = torch.randn(3, 6) if batched else torch.randn(6)
    state = (h, torch.randn_like(h)) if "LSTM" in cell else h
    results = []
    for module in (theirs, mine):
        leaves = [t.clone().requires_grad_() for t in (x, *parts(state))]
        first = parts(module(leaves[0]))
        second = parts(module(leaves[0], tuple(leaves[1:]) if "LSTM" in cell else leaves[1]))
        sum((t * t).sum() for t in (*first, *second)).backward()
        results.append([*first, *second, *(t.grad for t in leaves), *(p.grad for p in module.parameters())])
    for a, b in zip(*results):
        close(b, a)
    with torch.no_grad():
        for a, b in zip(parts(theirs(x, state)), parts(mine(x, state))):
            close(b, a)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    name, options = KINDS[kind]
    module = getattr(ours, name)(2, 4, 2, bidirectional=True, dtype=torch.float64, **options)
    keys = [key for key, _ in module.named_parameters()]
    x = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    h = torch.randn(4, 2, options.get("proj_size", 4), dtype=torch.float64, requires_grad=True)
    state = [h] + [torch.randn(4, 2, 4, dtype=torch.float64, requires_grad=True)] * (name == "LSTM")

    def call(x, *rest):
        given = rest[: len(state)]
        weights = dict(zip(keys, rest[len(state) :]))
        y, final = torch.func.functional_call(module, weights, (x, given if len(given) == 2 else given[0]))
        return y, *parts(final)

    weights = [p.detach().clone().requires_grad_() for p in module.parameters()]
    assert torch.autograd.gradcheck(call, (x, *state, *weights))
    packed = pack_padded_sequence(torch.randn(3, 2, 2, dtype=torch.float64), [1, 3], enforce_sorted=False)

    def call_packed(data):
        return module(PackedSequence(data, *packed[1:]))[0].data

    assert torch.autograd.gradcheck(call_packed, (packed.data.requires_grad_(),))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_unbatched(name):
    for first in FLAGS:
        theirs, mine = twins(name, 4, 6, 2, batch_first=first)
        x = torch.randn(5, 4)
        (y, final), (got, got_final) = theirs(x), mine(x)
        close(got, y)
        for a, b in zip(parts(final), parts(got_final)):
            close(b, a)
        close(mine(x, final)[0], theirs(x, final)[0])


def test_shape_of_a_torch_module():
    """Attributes, keys, repr and isinstance are torch's."""
    theirs, mine = twins("LSTM", 4, 6, 2, bidirectional=True, proj_size=3, dropout=0.5)
    assert isinstance(mine, torch.nn.LSTM) and repr(mine) == repr(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert [list(map(id, group)) for group in mine.all_weights] != []
    for name in ("input_size", "hidden_size", "num_layers", "bias", "dropout", "bidirectional", "proj_size", "mode"):
        assert getattr(mine, name) == getattr(theirs, name)


@pytest.mark.parametrize("make", [lambda m: copy.deepcopy(m), lambda m: pickle.loads(pickle.dumps(m)), "torch.save"])
def test_copies(make):
    module, x = ours.LSTM(4, 6), torch.randn(5, 3, 4)
    with torch.no_grad():
        want = module(x)[0]
        if make == "torch.save":
            buffer = io.BytesIO()
            torch.save(module, buffer)
            buffer.seek(0)
            twin = torch.load(buffer, weights_only=False)
        else:
            twin = make(module)
        assert torch.equal(twin(x)[0], want)
        twin.weight_hh_l0.mul_(2)
        assert torch.equal(module(x)[0], want) and not torch.equal(twin(x)[0], want)


def test_dropout_draws_from_torch():
    module, x = ours.GRU(4, 50, 2, dropout=0.5), torch.randn(5, 3, 4)
    torch.manual_seed(3)
    first = module(x)[0]
    assert not torch.equal(module(x)[0], first)
    torch.manual_seed(3)
    assert torch.equal(module(x)[0], first)
    assert torch.equal(module.eval()(x)[0], module(x)[0])


def test_parametrized_weight():
    """A weight that is computed, and learns through its computation; accelerate keeps it."""
    theirs = parametrizations.weight_norm(torch.nn.LSTM(4, 6), "weight_hh_l0")
    mine = ours.accelerate(copy.deepcopy(theirs))
    assert isinstance(mine, ours.LSTM) and parametrize.is_parametrized(mine, "weight_hh_l0")
    x = torch.randn(5, 3, 4)
    for a, b in zip(run(theirs, x, None, lambda x: x).values(), run(mine, x, None, lambda x: x).values()):
        close(b, a)


# ---- weights that change -------------------------------------------------------------------------------------


def test_packing_follows_every_write():
    theirs, mine = twins("LSTM", 4, 6)
    x = torch.randn(5, 3, 4)
    optimisers = [torch.optim.AdamW(m.parameters(), 1e-2) for m in (theirs, mine)]
    for _ in range(3):
        for module, optimiser in zip((theirs, mine), optimisers):
            optimiser.zero_grad()
            module(x)[0].square().mean().backward()
            optimiser.step()
        with torch.no_grad():
            close(mine(x)[0], theirs(x)[0])
    with torch.no_grad():
        for module in (theirs, mine):
            module.bias_ih_l0.add_(1)
            module(x)
            module.weight_ih_l0 = torch.nn.Parameter(module.weight_ih_l0 * 2)
        close(mine(x)[0], theirs(x)[0])
        for module in (theirs, mine):
            module.weight_hh_l0.data.mul_(3)
            module.flatten_parameters()
        close(mine(x)[0], theirs(x)[0])


def test_data_writes_while_training_are_seen():
    theirs, mine = twins("GRU", 4, 6)
    x = torch.randn(5, 3, 4)
    for _ in range(3):
        for module in (theirs, mine):
            for parameter in module.parameters():
                parameter.data.mul_(0.9)
        close(mine(x)[0], theirs(x)[0])


def test_tensors_are_used_where_they_lie():
    """No copy of the input, and no cycle that would keep a finished graph alive."""
    module, x = ours.LSTM(4, 6), torch.randn(5, 3, 4, requires_grad=True)
    y, _ = module(x)
    gc.disable()
    try:
        seen = weakref.ref(y)
        y.sum().backward()
        del y, _
        assert seen() is None
    finally:
        gc.enable()


def test_inputs_of_any_strides():
    theirs, mine = twins("LSTM", 4, 6)
    x = torch.randn(3, 5, 8)[:, :, ::2].transpose(0, 1)
    close(mine(x)[0], theirs(x)[0])


# ---- refusals ------------------------------------------------------------------------------------------------


def test_second_derivatives_are_refused():
    module, x = ours.LSTM(4, 6), torch.randn(5, 3, 4, requires_grad=True)
    (dx,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    assert torch.equal(dx, torch.autograd.grad(module(x)[0].sum(), x)[0])
    with pytest.raises(NotImplementedError, match="gradients of gradients"):
        dx.sum().backward()


def test_changed_in_place_before_backward():
    module, x = ours.LSTM(4, 6), torch.randn(5, 3, 4)
    loss = module(x)[0].sum()
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (lambda: torch.empty(5, 3, 4, device="meta"), "on the CPU"),
        (lambda: torch.randn(5, 3, 4).to_sparse(), "dense tensor"),
        (lambda: torch.randn(5, 3, 4).half(), "float32 or float64"),
        (lambda: torch.randn(5, 3, 4).bfloat16(), "float32 or float64"),
    ],
)
def test_unsupported_tensors(x, words):
    for module in (ours.LSTM(4, 6), ours.LSTMCell(4, 6)):
        with pytest.raises(NotImplementedError, match=words):
            module(x() if isinstance(module, torch.nn.LSTM) else x()[0])


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_wrong_shapes_fail_as_in_torch(name):
    theirs, mine = twins(name, 4, 6)
    h = torch.zeros(1, 3, 6)
    state = (h, h) if name == "LSTM" else h
    wrong = (h[:, :2], h[:, :2]) if name == "LSTM" else h[:, :2]
    for arguments in (
        (torch.randn(5, 3, 7),),
        (torch.randn(5, 3, 4), wrong),
        (torch.randn(5, 4), state),
        (torch.randn(4),),
    ):
        with pytest.raises((RuntimeError, ValueError)) as expected:
            theirs(*arguments)
        with pytest.raises(expected.type):
            mine(*arguments)
    with pytest.raises(ValueError, match="does not match weight dtype"):
        mine(torch.randn(5, 3, 4, dtype=torch.float64))


# ---- whole models --------------------------------------------------------------------------------------------


class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(20, 8)
        self.rnn = torch.nn.GRU(8, 16, 2, batch_first=True, bidirectional=True)
        self.more = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(32, 12, batch_first=True)})
        self.cell = torch.nn.RNNCell(12, 12)
        self.out = torch.nn.Linear(12, 5)

    def forward(self, tokens):
        h, _ = self.rnn(self.embed(tokens))
        h, _ = self.more["lstm"](h)
        return self.out(self.cell(h[:, -1]))


class Special(torch.nn.LSTM):
    def forward(self, x):
        return super().forward(x * 2)


def test_accelerate_shares_everything():
    model = Tagger()
    parameters, modules = list(model.parameters()), list(model.modules())
    model.rnn.register_forward_hook(lambda *_: calls.append(1))
    calls = []
    assert ours.accelerate(model) is model
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    kinds = (type(model.rnn), type(model.more["lstm"]), type(model.cell), type(model.out))
    assert kinds == (ours.GRU, ours.LSTM, ours.RNNCell, torch.nn.Linear)
    model(torch.randint(0, 20, (3, 7)))
    assert calls == [1]
    special = Special(3, 4)
    assert type(ours.accelerate(special)) is Special


def test_accelerated_training_has_the_same_curve():
    curves = []
    for accelerated in FLAGS:
        torch.manual_seed(1)
        model = Tagger()
        if accelerated:
            ours.accelerate(model)
        optimiser = torch.optim.Adam(model.parameters(), 1e-2)
        data = torch.Generator().manual_seed(2)
        curve = []
        for _ in range(40):
            tokens = torch.randint(0, 20, (16, 7), generator=data)
            loss = torch.nn.functional.cross_entropy(model(tokens), tokens[:, -1] % 5)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            curve.append(loss.item())
        curves.append(curve)
    np.testing.assert_allclose(*curves, rtol=1e-3)
    assert curves[0][-1] < 0.9 * curves[0][0]


# ---- to NumPy and back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("LSTM", {"num_layers": 2, "bidirectional": True, "proj_size": 3, "batch_first": True}),
        ("GRU", {"num_layers": 2, "bias": False}),
        ("RNN", {"nonlinearity": "relu", "num_layers": 2, "dropout": 0.25}),
        ("LSTMCell", {}),
        ("GRUCell", {"bias": False}),
        ("RNNCell", {"nonlinearity": "relu"}),
    ],
)
def test_round_trip(name, options, dtype):
    module = getattr(torch.nn, name)(4, 6, dtype=dtype, **options).eval()
    layer = rc.from_torch(module)
    assert type(layer) is getattr(rc, name)
    back = layer.to_torch().eval()
    assert type(back) is getattr(ours, name) and back.extra_repr() == module.extra_repr()
    for key, value in module.state_dict().items():
        assert torch.equal(back.state_dict()[key], value)
        np.testing.assert_array_equal(layer.params[key], value.numpy())
    x = torch.randn(*(2, 4) if "Cell" in name else (2, 5, 4), dtype=dtype)
    with torch.no_grad():
        want, mine = module(x), layer(x.numpy())
        want, mine = (want, mine) if "Cell" in name else (want[0], mine[0])
        for a, b in zip(parts(want), parts(mine)):
            np.testing.assert_allclose(b, a.numpy(), atol=1e-5)
        same = back(x) if "Cell" in name else back(x)[0]
        for a, b in zip(parts(same), parts(mine)):
            np.testing.assert_array_equal(a.numpy(), b)


def test_what_has_no_counterpart():
    with pytest.raises(TypeError, match="Linear"):
        rc.from_torch(torch.nn.Linear(2, 3))
    with pytest.raises(TypeError, match="float32 or float64"):
        rc.from_torch(torch.nn.GRU(2, 3).half())
    with pytest.raises(ValueError, match="reset_after"):
        rc.GRU(2, 3, reset_after=False).to_torch()
