"""Multi30k, German to English: how well a GRU of 512 with attention translates after an hour on two cores.

    pip install sacrebleu
    python -m benchmarks.multi30k --data FOLDER [--minutes 60]

FOLDER holds train, val and test_2016_flickr .de.gz and .en.gz (29,000 / 1,014 / 1,000 pairs of task 1). Words are
lower-cased, with punctuation apart; those that come twice in the training data are the vocabulary. Printed are test
perplexity and BLEU (sacrebleu over these tokens, tokenize none) of beam 5. Published for this data: GRU with attention
PPL 25.57, BLEU 28.30.
"""

from __future__ import annotations

import argparse
import gzip
import math
from pathlib import Path

import numpy as np

import rnn_core as rc
from rnn_core.run import RunFiles
from rnn_core.seq2seq import Decoder, Encoder, Seq2Seq
from rnn_core.seq2seq_text import END, START, UNK, Translator, Vocabulary, cut
from rnn_core.seq2seq_train import Pairs, train


def read(folder: Path, part: str) -> list[tuple[str, str]]:
    sides = []
    for language in ("de", "en"):
        with gzip.open(folder / f"{part}.{language}.gz", "rt", encoding="utf-8") as file:
            sides.append([" ".join(cut("words", line.lower())) for line in file.read().splitlines()])
    return list(zip(*sides))


def build(source: Vocabulary, target: Vocabulary, arguments: argparse.Namespace) -> Translator:
    options = {"dropout": arguments.dropout}
    encoder = Encoder(len(source), arguments.embedding, arguments.hidden // 2, bidirectional=True, seed=arguments.seed,
                      **options)
    decoder = Decoder(len(target), arguments.embedding, arguments.hidden, memory_size=encoder.output_size,
                      tied=arguments.tied, start_token=START, end_token=END, unk_token=UNK, seed=arguments.seed + 1,
                      **options)
    return Translator(Seq2Seq(encoder, decoder, seed=arguments.seed + 2), source, target)


def pairs_of(translator: Translator, rows: list[tuple[str, str]]) -> Pairs:
    encode = translator.source.encode, translator.target.encode
    return Pairs.of([encode[0](s) for s, _ in rows], [encode[1](t) for _, t in rows])


def perplexity(translator: Translator, rows: list[tuple[str, str]]) -> float:
    pairs, total, count = pairs_of(translator, rows), 0.0, 0
    for begin in range(0, len(pairs), 100):
        loss, tokens = translator.model.loss(*pairs.pick(np.arange(begin, min(begin + 100, len(pairs)))))
        total, count = total + loss, count + tokens
    return math.exp(total / count)


def bleu(translator: Translator, rows: list[tuple[str, str]], beam: int) -> float:
    import sacrebleu

    results = translator([s for s, _ in rows], beam_size=beam, disable_unk=True, max_decoding_length=80)
    said = [translator.text(result.tokens) for result in results]
    return sacrebleu.corpus_bleu(said, [[t for _, t in rows]], tokenize="none", force=True).score


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--embedding", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--dropout", type=float, default=0.4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--tied", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", metavar="NAME", help="keep checkpoints under this name")
    arguments = parser.parse_args()
    rows = {part: read(arguments.data, part) for part in ("train", "val", "test_2016_flickr")}
    source, target = (Vocabulary.of("symbols", (row[i] for row in rows["train"]), 2) for i in (0, 1))
    translator = build(source, target, arguments)
    print(f"{len(source):,} and {len(target):,} words, {translator.model.num_parameters():,} parameters, "
          f"{rc.get_num_threads()} threads", flush=True)
    files = RunFiles.of(arguments.out) if arguments.out else None
    state = train(translator.model, pairs_of(translator, rows["train"]), pairs_of(translator, rows["val"]),
                  minutes=arguments.minutes, batch_size=arguments.batch_size, lr=arguments.lr, label_smoothing=0.1,
                  average=0.999, seed=arguments.seed, files=files, config=translator.config())
    print(f"{state.step} steps, {state.epoch} epochs, best validation loss {state.best:.4f}")
    test = rows["test_2016_flickr"]
    print(f"perplexity {perplexity(translator, test):.2f}  BLEU {bleu(translator, test, 5):.2f} (beam 5)  "
          f"{bleu(translator, test, 1):.2f} (greedy)")


if __name__ == "__main__":
    main()
