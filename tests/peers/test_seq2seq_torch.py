"""Seq2Seq against the same model written with torch modules: outputs, gradients, and beam search."""

import numpy as np
import pytest

from rnn_core.seq2seq import Decoder, Encoder, Seq2Seq

torch = pytest.importorskip("torch")
from benchmarks.seq2seq_torch import TorchSeq2Seq  # noqa: E402

pytestmark = pytest.mark.peers
SOURCES = [[1, 2, 3], [4, 5], [6, 0, 1, 2, 3], [2]]
TARGETS = [[3, 4], [5, 6, 7, 8], [], [1]]


def build(cell, attention, layers, bidirectional, dtype="float64", **decoder):
    first = Encoder(7, 4, 6, layers, cell=cell, bidirectional=bidirectional, dtype=dtype, seed=1)
    options = {"attention": attention, "memory_size": first.output_size, **decoder}
    return Seq2Seq(first, Decoder(9, 5, 6, layers, cell=cell, dtype=dtype, seed=2, **options), seed=3)


CASES = [(cell, attention, layers, bidirectional, {})
         for cell in ("gru", "lstm", "rnn") for attention in ("general", "additive", None)
         for layers, bidirectional in ((1, True), (2, False), (2, True))]
CASES += [(cell, attention, 2, True, {"input_feeding": True})
          for cell in ("gru", "lstm", "rnn") for attention in ("general", "additive")]
CASES += [("gru", "dot", 1, False, {}), ("lstm", "dot", 2, False, {"attention_size": 3, "input_feeding": True})]


@pytest.mark.parametrize("cell, attention, layers, bidirectional, options", CASES)
def test_outputs_and_gradients(cell, attention, layers, bidirectional, options):
    model = build(cell, attention, layers, bidirectional, **options)
    peer = TorchSeq2Seq(model)
    logits, theirs = model(SOURCES, TARGETS), peer(SOURCES, TARGETS).detach().numpy()
    real = np.concatenate([theirs[i, :n] for i, n in enumerate(logits.lengths)])
    np.testing.assert_allclose(logits.values, real, atol=1e-12)
    loss = model.learn(SOURCES, TARGETS, label_smoothing=0.1)
    expected = peer.loss(SOURCES, TARGETS, 0.1)
    expected.backward()
    assert abs(loss - expected.item()) < 1e-12
    grads = dict(peer.named_parameters())
    for key, grad in model.grads.items():
        np.testing.assert_allclose(grad, grads[key].grad.numpy(), atol=1e-12, err_msg=key)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("beam", [1, 5])
def test_beam_search(cell, beam):
    model = build(cell, "general", 1, True, "float32")
    model.assign("decoder.output.weight", model.params["decoder.output.weight"] * 4)
    results = model.decode(SOURCES, beam_size=beam, min_decoding_length=6, max_decoding_length=6)
    expected = TorchSeq2Seq(model).beam_search(SOURCES, beam, 6)
    assert [r.tokens for r in results] == expected.tolist()
