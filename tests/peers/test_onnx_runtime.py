"""ONNX against the other engines: the conformance suite under ONNX Runtime and torch, and round trips through files."""

import numpy as np
import onnx
import onnxruntime.backend
import pytest
import torch

from rnn_core.onnx import backend, conformance, load, save

pytestmark = pytest.mark.peers
SUITE = conformance.cases(600)
# ONNX Runtime has layout 0 only, and zeroes the state of an empty sequence instead of leaving it as it was given.
FOR_RUNTIME = [case for case in SUITE if not conformance.features(case) & {"layout", "zero_length"}]


def session(model):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def test_onnx_runtime_agrees_with_the_reference():
    """Neither engine had a hand in the reference: that a third agrees says that the suite reads ONNX right."""
    assert len(FOR_RUNTIME) > 300
    failed = {str(case): faults for case in FOR_RUNTIME if (faults := conformance.run_case(onnxruntime.backend, case))}
    assert not failed


def test_the_backend_agrees_with_onnx_runtime():
    for case in FOR_RUNTIME:
        theirs = session(case.model()).run(case.outputs, case.fed())
        for a, b in zip(theirs, backend.run_model(case.model(), case.fed())):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5, err_msg=str(case))


def in_torch(case):
    """The case as a torch module with its weights, or None where torch has no such layer."""
    names = set(case.attributes.get("activations", ["Tanh"]))
    plain = names in ({"Tanh"}, {"Relu"}) if case.op == "RNN" else "activations" not in case.attributes
    extras = conformance.features(case) & {"clip", "input_forget", "P", "reverse", "zero_length"}
    if not plain or extras or (case.op == "GRU" and not case.attributes.get("linear_before_reset")):
        return None
    W, R = case.inputs["W"], case.inputs["R"]
    options = {"nonlinearity": names.pop().lower()} if case.op == "RNN" else {}
    H = R.shape[2]
    module = getattr(torch.nn, case.op)(W.shape[2], H, bidirectional=len(W) == 2, dtype=torch.float64, **options)
    order = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 2, 3, 1]}[case.op]
    biases = case.inputs.get("B", np.zeros((len(W), 2 * len(order) * H)))
    state = {}
    for d, end in enumerate(["_l0", "_l0_reverse"][: len(W)]):
        parts = {"weight_ih": W[d], "weight_hh": R[d]}
        parts["bias_ih"], parts["bias_hh"] = np.split(biases[d], 2)
        for name, value in parts.items():
            rows = np.split(value, len(order))
            state[name + end] = torch.tensor(np.concatenate([rows[k] for k in order]))
    module.load_state_dict(state)
    return module


def test_torch_agrees_with_the_reference():
    seen = 0
    for case in SUITE:
        module = in_torch(case)
        if module is None:
            continue
        seen += 1
        batch_first = case.attributes.get("layout") == 1
        turn = (lambda a: np.swapaxes(a, 0, 1)) if batch_first else (lambda a: a)
        x = torch.tensor(turn(case.inputs["X"]), dtype=torch.float64)
        lengths = case.inputs.get("sequence_lens", np.full(x.shape[1], len(x)))
        shape = (case.inputs["W"].shape[0], x.shape[1], module.hidden_size)
        given = [case.inputs.get(name) for name in ("initial_h", "initial_c")]
        start = [torch.zeros(shape).double() if s is None else torch.tensor(turn(s)).double() for s in given]
        packed = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        with torch.no_grad():
            y, final = module(packed, tuple(start) if case.op == "LSTM" else start[0])
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=len(x))
        y = y.numpy().reshape(*y.shape[:2], shape[0], -1)  # (T, B, D, H)
        states = [turn(part.numpy()) for part in (final if case.op == "LSTM" else (final,))]
        found = {"Y": y.swapaxes(0, 1) if batch_first else y.transpose(0, 2, 1, 3)}
        found.update(zip(("Y_h", "Y_c"), states))
        expected = case.expected()
        assert not conformance.compare(expected, found, 1e-9, 1e-9), case
    assert seen > 60


def initializers(model):
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_onnx_to_onnx_runtime(tmp_path):
    """ONNX -> rnn_core -> ONNX -> ONNX Runtime: every weight bit for bit, outputs within 1e-5."""
    seen = set()
    for case in FOR_RUNTIME:
        if case.number % 2:  # the weights are inputs
            continue
        layer = load(case.model().SerializeToString())
        save(layer, tmp_path / "again.onnx", lengths=True, state=True)
        again = onnx.load(str(tmp_path / "again.onnx"))
        onnx.checker.check_model(again, full_check=True)
        for name, value in initializers(case.model()).items():
            np.testing.assert_array_equal(initializers(again)[name], value, err_msg=f"{case} {name}")
        T, B, _ = case.inputs["X"].shape
        D, _, H = case.inputs["R"].shape
        fed = {"X": case.inputs["X"], "sequence_lens": np.full(B, T, np.int32)}
        fed.update({f"initial_{part}": np.zeros((D, B, H), np.float32) for part in "hc"[: 1 + (case.op == "LSTM")]})
        fed.update({name: case.inputs[name] for name in fed if name in case.inputs})
        theirs = session(case.model()).run(case.outputs, case.fed())
        mine = session(again).run(case.outputs, fed)
        for a, b in zip(theirs, mine):
            np.testing.assert_allclose(b, a, atol=1e-5, err_msg=str(case))
        seen.add(type(layer).__name__)
    assert len(seen) == 6


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_stacked_layers_under_onnx_runtime(op, tmp_path):
    import rnn_core as rc

    layer = getattr(rc, op)(3, 4, 3, bidirectional=True, seed=1)
    save(layer, tmp_path / "m.onnx", state=True)
    x = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    start = [np.random.default_rng(n).standard_normal((6, 2, 4)).astype(np.float32) for n in range(2)]
    fed = {"X": x, "initial_h": start[0], **({"initial_c": start[1]} if op == "LSTM" else {})}
    Y, *states = session(onnx.load(str(tmp_path / "m.onnx"))).run(None, fed)
    y, final = layer(x, tuple(start) if op == "LSTM" else start[0])
    np.testing.assert_allclose(Y.transpose(0, 2, 1, 3).reshape(y.shape), y, atol=1e-5)
    for a, b in zip(states, final if op == "LSTM" else (final,)):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_what_torch_exports(op, with_state, tmp_path):
    """torch computes zero states from the input's shape, and cuts a given state into levels."""
    import warnings

    module = getattr(torch.nn, op)(3, 4, 2, bidirectional=True).eval()
    x, h = torch.randn(5, 2, 3), torch.randn(4, 2, 4)
    state = ((h, h + 1) if op == "LSTM" else h,) if with_state else ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x, *state), str(tmp_path / "m.onnx"), dynamo=False)
    layer = load(tmp_path / "m.onnx")
    for key, value in module.state_dict().items():
        np.testing.assert_array_equal(layer.params[key], value.numpy())
    with torch.no_grad():
        want = module(x, *state)[0].numpy()
    given = [(h.numpy(), h.numpy() + 1) if op == "LSTM" else h.numpy()] if with_state else []
    np.testing.assert_allclose(layer(x.numpy(), *given)[0], want, atol=1e-5)
    fed = [x.numpy(), *(given[0] if with_state and op == "LSTM" else given)]
    np.testing.assert_allclose(backend.run_model(onnx.load(str(tmp_path / "m.onnx")), fed)[0], want, atol=1e-5)
