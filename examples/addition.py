"""Sums as text, as in Keras' example: the model reads "12+345" backwards and writes "357".

    python examples/addition.py

45,000 questions to learn from, 5,000 held out, one LSTM layer of 128 on each side, no attention. The last line tells
how many characters of the held-out answers are right.
"""

from __future__ import annotations

import argparse

import numpy as np

from rnn_core.seq2seq import Decoder, Encoder, Seq2Seq
from rnn_core.seq2seq_train import Pairs, train

CHARACTERS = "0123456789+ "
START, END = len(CHARACTERS), len(CHARACTERS) + 1
DIGITS = 3


def questions(count: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Distinct questions, whichever number comes first, and their answers."""
    found: dict[tuple[int, int], tuple[str, str]] = {}
    while len(found) < count:
        a, b = (int(rng.integers(10 ** int(rng.integers(1, DIGITS + 1)))) for _ in range(2))
        found.setdefault((min(a, b), max(a, b)), (f"{a}+{b}", str(a + b)))
    return list(found.values())


def numbers(text: str, width: int) -> list[int]:
    return [CHARACTERS.index(c) for c in text.ljust(width)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = questions(50_000, np.random.default_rng(arguments.seed))
    sources = [numbers(question, 2 * DIGITS + 1)[::-1] for question, _ in rows]
    targets = [numbers(answer, DIGITS + 1) for _, answer in rows]
    pairs = Pairs.of(sources[:45_000], targets[:45_000])
    encoder = Encoder(len(CHARACTERS), 32, 128, cell="lstm", seed=arguments.seed)
    decoder = Decoder(len(CHARACTERS) + 2, 32, 128, cell="lstm", attention=None, start_token=START, end_token=END,
                      seed=arguments.seed + 1)
    model = Seq2Seq(encoder, decoder)
    train(model, pairs, epochs=arguments.epochs, batch_size=128, lr=4e-3, clip=1.0, seed=arguments.seed)
    results = model.decode(sources[45_000:], beam_size=1, max_decoding_length=DIGITS + 1)
    right = sum(said == true for result, target in zip(results, targets[45_000:])
                for said, true in zip(result.tokens, target))
    print(f"right {100 * right / (5_000 * (DIGITS + 1)):.2f} %")


if __name__ == "__main__":
    main()
