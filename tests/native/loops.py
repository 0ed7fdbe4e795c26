"""Calls of every kind of the recurrent layers, training steps and decoding with 2, 3 and 5 threads, for `make sanitize`
to run under TSan."""

import itertools

import numpy as np

import rnn_core as rc
from rnn_core import _testing
from rnn_core.seq2seq import Decoder, Encoder

# T, B, I, H, L, bidirectional: threads share out sequences or hidden units, of one or two groups, in one chunk or more,
# or take turns with the chunks
SHAPES = [
    (20, 17, 24, 40, 1, False),
    (9, 33, 64, 64, 2, True),
    (6, 3, 30, 200, 1, False),
    (5, 1, 16, 256, 2, True),
    (30, 16, 20, 64, 1, False),
    (4, 20, 16, 130, 2, False),
    (300, 32, 16, 32, 2, False),
    (300, 1, 24, 32, 2, False),
    (500, 3, 16, 17, 1, False),
]
VARIANTS = [
    {"layer_norm": True},
    {"proj_size": 20},
    {"zoneout": 0.1},
    {"recurrent_dropout": 0.2},
    {"weight_drop": 0.2},
    {"dropout": 0.2},
]


def train(layer, x, lengths=None, **options):
    layer.zero_grad()
    y, _, tape = layer.forward(x, None, lengths, **options)
    layer.backward(tape, np.ones_like(y))


def single_steps(cell, normal):
    """Of one sequence and of a few, whose weights come slice by slice or whole."""
    for size, rows in itertools.product((48, 300), (1, 7)):
        layer, x = cell(size, size, seed=0), normal(1, rows, size)
        state = None
        for _ in range(3):
            _, state = layer(x, state)


def training_step(rng, normal):
    """Output layer, loss, clipping and optimiser, of sizes that are shared out."""
    model = rc.Linear(96, 301, seed=0)
    optimiser = rc.optim.Adam(model.params)
    for _ in range(2):
        logits, tape = model.forward(normal(40, 50, 96))
        _, dlogits = rc.losses.cross_entropy(logits, rng.integers(0, 301, (40, 50)))
        model.zero_grad()
        model.backward(tape, dlogits)
        rc.clip_grad_norm(model.grads, 1.0)
        optimiser.step(model.grads)


def translation(rng, attention, input_feeding):
    """A step of training, then greedy, beam and sampled decoding."""
    encoder = Encoder(num_embeddings=30, embedding_dim=32, hidden_size=48, bidirectional=True, seed=0)
    decoder = Decoder(40, 32, 96, attention=attention, memory_size=encoder.output_size, input_feeding=input_feeding,
                      start_token=0, end_token=1, seed=1)
    model = rc.Seq2Seq(encoder, decoder)
    sources = [rng.integers(2, 30, n) for n in rng.integers(1, 20, 33)]
    model.learn(sources, [rng.integers(2, 40, n) for n in rng.integers(1, 20, 33)])
    for options in ({"beam_size": 1}, {"beam_size": 4}, {"beam_size": 1, "sampling_topk": 5, "num_hypotheses": 2}):
        model.decode(sources, max_decoding_length=20, return_attention=attention is not None, seed=0, **options)


def main():
    rng = np.random.default_rng(0)
    _testing.wake_for_all(True)

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    for threads in (2, 3, 5):
        rc.set_num_threads(threads)
        training_step(rng, normal)
        for attention, input_feeding in itertools.product((None, "general", "additive"), (False, True)):
            if attention or not input_feeding:
                translation(rng, attention, input_feeding)
    for threads, cell in itertools.product((2, 3, 5), (rc.RNN, rc.LSTM, rc.GRU)):
        rc.set_num_threads(threads)
        single_steps(cell, normal)
        for T, B, I, H, L, bidirectional in SHAPES:
            layer, x = cell(I, H, L, seed=0, bidirectional=bidirectional), normal(T, B, I)
            for lengths in (None, rng.integers(1, T + 1, B)):
                layer(x, None, lengths)
                train(layer, x, lengths)
                train(layer, x, lengths)  # with the memory of the tape before
                if not bidirectional:
                    train(layer, x, lengths, recompute=True)
        x = normal(12, 20, 24)
        for variant in VARIANTS:
            if cell is rc.LSTM or "proj_size" not in variant:
                train(cell(24, 48, 2, seed=0, **variant), x)
        if cell is rc.GRU:
            train(cell(24, 48, 2, seed=0, reset_after=False), x)
        train(cell(24, 48, 2, seed=0, dtype="float64"), x.astype(np.float64))
        train(cell(24, 48, 2, seed=0, batch_first=True), x)
        cell(24, 48, 2, seed=0)(x, return_all_states=True)
        train(cell(24, 48, seed=0), rng.integers(0, 9, (12, 20)), embedding=rc.Embedding(9, 24))


if __name__ == "__main__":
    main()
