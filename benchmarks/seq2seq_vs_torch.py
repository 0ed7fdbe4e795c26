"""Decoding and training of sequence-to-sequence models side by side with torch modules of the same weights.

    python benchmarks/seq2seq_vs_torch.py [--threads 1] [--repeats 7] [--part decode|train]

small   embedding 128, bidirectional GRU encoder 2 x 160, GRU decoder 320, Luong's general attention, 41 phonemes
g2p     the model of examples/g2p.py: the same with LSTMs of 2 x 256 and 512
large   embedding 256, bidirectional GRU encoder 2 x 256, GRU decoder 512, the same attention, vocabulary of 8,000

Both engines decode the same number of steps (no end token before the last), encoder included; torch runs the
usual batched beam loop under inference_mode, and both give the same tokens. A training step is forward, loss, backward,
clipping and Adam (torch: fused) on a ragged batch of 64; torch pads it. The engines take turns of at least
20 ms each, so that a short call finds its own weights in the cache as it does in a service; the best of all calls.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import rnn_core as rc
from benchmarks.seq2seq_torch import TorchSeq2Seq
from rnn_core.seq2seq import Decoder, Encoder, Seq2Seq

TURN = 0.02  # seconds
MODELS = {
    "small": {"cell": "gru", "embedding": 128, "encoder": 160, "decoder": 320, "attention": 160, "vocabulary": 41,
              "source": (4, 12), "steps": 8, "bars": {1: 8.0, 64: 2.5, "train": 1.5}},
    "g2p": {"cell": "lstm", "embedding": 128, "encoder": 256, "decoder": 512, "attention": 256, "vocabulary": 41,
            "source": (4, 12), "steps": 8, "bars": {1: 8.0, 64: 2.5, "train": 1.5}},
    "large": {"cell": "gru", "embedding": 256, "encoder": 256, "decoder": 512, "attention": 512, "vocabulary": 8000,
              "source": (8, 20), "steps": 14, "bars": {1: 2.0, 64: 1.25, "train": 1.15}},
}


def build(sizes: dict[str, Any]) -> Seq2Seq:
    encoder = Encoder(sizes["vocabulary"], sizes["embedding"], sizes["encoder"], cell=sizes["cell"],
                      bidirectional=True, seed=1)
    decoder = Decoder(sizes["vocabulary"], sizes["embedding"], sizes["decoder"], cell=sizes["cell"],
                      memory_size=encoder.output_size, attention_size=sizes["attention"], seed=2)
    model = Seq2Seq(encoder, decoder, seed=3)
    model.assign("decoder.output.weight", model.params["decoder.output.weight"] * 8)
    return model


def sentences(sizes: dict[str, Any], batch: int, rng: np.random.Generator) -> list[list[int]]:
    low, high = sizes["source"]
    return [rng.integers(3, sizes["vocabulary"], rng.integers(low, high + 1)).tolist() for _ in range(batch)]


def best(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Seconds of the fastest call of each, in turns of one call or as many as fit into 20 ms."""
    found = {name: float("inf") for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            turn = time.perf_counter()
            begin = turn
            while begin - turn < TURN:
                call()
                end = time.perf_counter()
                found[name], begin = min(found[name], end - begin), end
    return found


def row(name: str, what: str, seconds: dict[str, float], bar: float) -> None:
    ours, theirs = seconds["rnn_core"] * 1e3, seconds["torch"] * 1e3
    print(f"| {name} | {what} | {ours:.2f} | {theirs:.2f} | {theirs / ours:.2f} | {bar} |", flush=True)


def decode_rows(name: str, repeats: int) -> None:
    sizes, rng = MODELS[name], np.random.default_rng(0)
    model = build(sizes)
    peer, steps = TorchSeq2Seq(model).eval(), sizes["steps"]
    for batch in (1, 64):
        sources = sentences(sizes, batch, rng)
        for beam in (1, 5):
            calls = {
                "rnn_core": lambda: model.decode(sources, beam_size=beam, min_decoding_length=steps,  # noqa: B023
                                                 max_decoding_length=steps),
                "torch": lambda: peer.beam_search(sources, beam, steps),  # noqa: B023
            }
            same = np.mean([a.tokens == b.tolist() for a, b in zip(calls["rnn_core"](), calls["torch"]())])
            what = f"{'greedy' if beam == 1 else 'beam 5'}, batch {batch}, {100 * same:.0f} % same"
            row(name, what, best(calls, repeats * (4 if batch == 1 else 1)), sizes["bars"][batch])


def train_row(name: str, repeats: int) -> None:
    sizes, rng = MODELS[name], np.random.default_rng(0)
    model = build(sizes)
    peer = TorchSeq2Seq(model)
    sources = sentences(sizes, 64, rng)
    targets = [s[: sizes["steps"]] for s in sentences(sizes, 64, rng)]
    ours = rc.optim.Adam(model.params, lr=1e-3)
    theirs = torch.optim.Adam(peer.parameters(), lr=1e-3, fused=True)

    def own_step() -> None:
        model.zero_grad()
        model.learn(sources, targets, label_smoothing=0.1)
        rc.clip_grad_norm(model.grads, 1.0)
        ours.step(model.grads)

    def torch_step() -> None:
        theirs.zero_grad()
        peer.loss(sources, targets, 0.1).backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        theirs.step()

    row(name, "training step, batch 64", best({"rnn_core": own_step, "torch": torch_step}, repeats),
        sizes["bars"]["train"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--part", choices=("decode", "train"))
    arguments = parser.parse_args()
    rc.set_num_threads(arguments.threads)
    torch.set_num_threads(arguments.threads)
    print("| model | what | rnn_core ms | torch ms | times as fast | wanted |\n|---|---|---|---|---|---|")
    for name in MODELS:
        if arguments.part != "train":
            decode_rows(name, arguments.repeats)
        if arguments.part != "decode":
            train_row(name, arguments.repeats)


if __name__ == "__main__":
    main()
