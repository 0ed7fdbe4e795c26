"""The tree of modules: keys, loading, gradients, copies (rnn_core/module.py)."""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rnn_core._parameters import door

import rnn_core as rc
from rnn_core.module import Module, aligned_zeros


class Leaf(Module):
    def __init__(self, n, start=0.0, dtype="float32"):
        super().__init__(dtype)
        self.n = n
        self._add_parameter("weight", np.full((n, 2), start))
        self._add_parameter("bias", np.full(n, start))

    def _describe(self):
        return str(self.n)


class Net(Module):
    _transient = ("plan",)

    def __init__(self):
        super().__init__()
        self.embedding = Leaf(3, 1.0)
        self.head = Leaf(2, 2.0)
        self.plan = object()


KEYS = ["embedding.weight", "embedding.bias", "head.weight", "head.bias"]


def snapshot(module):
    return {key: value.copy() for key, value in module.params.items()}


def unchanged(module, before):
    return all(np.array_equal(module.params[key], before[key]) for key in before)


def test_keys_are_dotted_and_in_order():
    net = Net()
    assert list(net.params) == list(net.grads) == list(net.state_dict()) == KEYS
    assert list(net.children) == ["embedding", "head"] and net.num_parameters() == 15
    assert repr(net) == "Net(\n  (embedding): Leaf(3)\n  (head): Leaf(2)\n)"


def test_params_are_views_and_changing_the_dictionary_changes_nothing():
    net = Net()
    params = net.params
    params.clear()
    net.grads.clear()
    assert list(net.params) == list(net.grads) == KEYS
    with pytest.raises(ValueError, match="read-only"):
        net.params["head.bias"][0] = 1


def test_grads_keep_their_identity_through_zero_grad_and_a_growing_tree():
    net = Net()
    grads = net.grads
    for grad in grads.values():
        grad += 3
    net.zero_grad()
    assert not any(grad.any() for grad in grads.values())
    net.extra = Leaf(1)
    assert list(net.params) == [*KEYS, "extra.weight", "extra.bias"]
    assert all(net.grads[key] is grads[key] for key in KEYS)
    assert all(net.grads[k].shape == p.shape and net.grads[k].dtype == p.dtype for k, p in net.params.items())
    assert all(grad.ctypes.data % 64 == 0 for grad in net.grads.values())


def test_zero_grad_reaches_gradients_made_since_and_leaves_a_copys_alone():
    net = Net()
    net.zero_grad()
    for grad in net.grads.values():
        grad += 3
    net.zero_grad()
    assert not any(grad.any() for grad in net.grads.values())
    other = copy.deepcopy(net)
    for module in (net, other):
        for grad in module.grads.values():
            grad += 3
    other.zero_grad()
    assert all((grad == 3).all() for grad in net.grads.values())
    assert not any(grad.any() for grad in other.grads.values())


def test_a_grandchild_that_grows_is_seen_from_the_root():
    root = Net()
    before = root.params
    root.head._add_parameter("scale", np.ones(1))
    assert set(root.params) - set(before) == {"head.scale"}


def test_replacing_a_child_replaces_its_keys():
    net = Net()
    net.params  # noqa: B018 (fills the cache)
    net.head = Leaf(5)
    assert net.params["head.bias"].shape == (5,)
    net.head = None
    assert list(net.params) == KEYS[:2]


def test_a_module_in_two_places_counts_once_and_is_saved_twice():
    net = Net()
    net.tied = net.head
    assert "tied.weight" not in net.params and net.num_parameters() == 15
    state = net.state_dict()
    assert np.array_equal(state["tied.weight"], state["head.weight"])
    net.load_state_dict(state)


def test_a_cycle_is_refused():
    net = Net()
    with pytest.raises(ValueError, match="part of itself"):
        net.embedding.up = net


def test_state_dict_gives_copies():
    net = Net()
    state = net.state_dict()
    state["head.bias"][:] = 9
    assert (net.params["head.bias"] == 2).all()


@given(st.integers(0, 2**32 - 1))
def test_load_then_save_is_the_identity(seed):
    rng, net = np.random.default_rng(seed), Net()
    state = {key: rng.standard_normal(p.shape).astype(np.float32) for key, p in net.params.items()}
    result = net.load_state_dict(state)
    assert result == ([], [])
    for key, value in net.state_dict().items():
        assert np.array_equal(value, state[key])


def test_every_write_moves_the_version():
    net = Net()
    buffer = door(net.params["head.bias"])
    start = buffer.version
    net.load_state_dict(net.state_dict())
    net.assign("head.bias", [5, 6])
    assert buffer.version == start + 2 and net.params["head.bias"].tolist() == [5, 6]
    rc.optim.SGD(net.params, lr=1.0).step({**net.grads, "head.bias": np.ones(2, np.float32)})
    assert buffer.version > start + 2 and net.params["head.bias"].tolist() == [4, 5]


@pytest.mark.parametrize(
    "change, kind, words",
    [
        (lambda s: s.pop("head.bias"), ValueError, ["missing: ['head.bias']", "unexpected: none"]),
        (lambda s: s.update(new=np.ones(1)), ValueError, ["missing: none", "unexpected: ['new']"]),
        (lambda s: s.update({"head.bias": np.ones(3)}), ValueError, ["head.bias: expected shape (2,), got (3,)"]),
        (
            lambda s: s.update({"head.bias": np.ones(2, int)}),
            TypeError,
            ["head.bias: expected dtype float32, got int64"],
        ),
        (lambda s: s.update({"head.bias": np.ones(2, complex)}), TypeError, ["expected dtype float32, got complex128"]),
        (lambda s: s.update({"head.bias": ["a", "b"]}), TypeError, ["head.bias: expected dtype float32"]),
        (lambda s: s.update({"head.bias": [[1.0], [1.0, 2.0]]}), TypeError, ["head.bias: expected a float32 array"]),
        (
            lambda s: s.update({"head.bias": np.ones(3), "embedding.bias": np.ones((3, 1))}),
            ValueError,
            ["embedding.bias: expected shape (3,), got (3, 1)", "head.bias: expected shape (2,), got (3,)"],
        ),
    ],
)
def test_a_bad_state_dict_is_refused_whole(change, kind, words):
    net = Net()
    before = snapshot(net)
    state = {key: value + 7 for key, value in net.state_dict().items()}
    change(state)
    with pytest.raises(kind) as error:
        net.load_state_dict(state)
    assert all(word in str(error.value) for word in words), error.value
    assert unchanged(net, before)


def test_not_strict_passes_over_keys_but_not_shapes():
    net = Net()
    result = net.load_state_dict({"head.bias": [3.0, 4.0], "other": np.ones(1)}, strict=False)
    assert result.missing_keys == KEYS[:3] and result.unexpected_keys == ["other"]
    assert net.params["head.bias"].tolist() == [3, 4]
    with pytest.raises(ValueError, match="expected shape"):
        net.load_state_dict({"head.bias": [3.0]}, strict=False)
    with pytest.raises(TypeError, match="expected a mapping"):
        net.load_state_dict([("head.bias", [1, 2])])


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_dtypes_are_converted(dtype):
    net = Net()
    net.load_state_dict({key: np.full(p.shape, 0.5, dtype) for key, p in net.params.items()})
    assert all((p == 0.5).all() and p.dtype == np.float32 for p in net.params.values())


def test_loading_parameters_of_the_same_module_reads_before_it_writes():
    net = Net()
    net.other = Leaf(2, 5.0)
    params = net.params
    net.load_state_dict(params | {"head.bias": params["other.bias"], "other.bias": params["head.bias"]})
    assert (net.params["head.bias"] == 5).all() and (net.params["other.bias"] == 2).all()


def test_assign_names_what_it_knows():
    net = Net()
    with pytest.raises(ValueError, match=r"expected one of \['embedding.weight'.*got 'bias'"):
        net.assign("bias", [1.0])
    with pytest.raises(ValueError, match=r"head.bias: expected shape \(2,\), got \(3,\)"):
        net.assign("head.bias", np.ones(3))
    assert (net.params["head.bias"] == 2).all()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_stand_alone(duplicate):
    net = Net()
    net.grads["head.bias"][:] = 4
    other = duplicate(net)
    net.assign("head.bias", [8.0, 8.0])
    assert (other.params["head.bias"] == 2).all() and repr(other) == repr(net)
    assert not other.grads["head.bias"].any() and other.plan is None and net.plan is not None
    other.assign("head.bias", [1.0, 1.0])
    assert (net.params["head.bias"] == 8).all()


@pytest.mark.parametrize("name", ["", "a.b", "weight"])
def test_bad_names_are_refused(name):
    with pytest.raises(ValueError, match="name"):
        Leaf(2)._add_parameter(name, np.ones(1))


def test_children_are_modules():
    with pytest.raises(TypeError, match="x: expected a Module, got int"):
        Net()._add_child("x", 3)


def test_aligned_zeros():
    for shape in ((), (0,), (5,), (3, 7)):
        found = aligned_zeros(shape, np.float64)
        assert found.shape == shape and found.flags.writeable and not found.any()
        assert not found.size or found.ctypes.data % 64 == 0
