"""Batches, training and its resumption, text and the command line."""

import io
import itertools

import numpy as np
import pytest

from rnn_core import cli
from rnn_core.run import RunFiles
from rnn_core.seq2seq import Decoder, Encoder, Seq2Seq
from rnn_core.seq2seq_text import Translator, Vocabulary, read_pairs
from rnn_core.seq2seq_train import Pairs, Trainer, TrainOptions, bucketed, take, train

PNG = b"\x89PNG\r\n\x1a\n"


def copying(n=200, seed=0):
    """Pairs whose target is the source, reversed."""
    rng = np.random.default_rng(seed)
    sources = [rng.integers(3, 9, rng.integers(1, 6)).tolist() for _ in range(n)]
    return Pairs.of(sources, [row[::-1] for row in sources])


def model(dropout=0.0, **options):
    encoder = Encoder(9, 8, 16, bidirectional=True, dropout=dropout, seed=1)
    return Seq2Seq(encoder, Decoder(9, 8, 32, memory_size=32, dropout=dropout, seed=2, **options), seed=3)


def test_batches_hold_every_pair_once_and_like_lengths():
    pairs = copying(1000)
    lengths = pairs.sources.lengths, pairs.targets.lengths
    batches = bucketed(*lengths, 32, np.random.default_rng(0))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert np.mean([np.ptp(lengths[0][batch]) for batch in batches]) < 1
    assert [b.tolist() for b in batches] != [b.tolist() for b in bucketed(*lengths, 32, np.random.default_rng(1))]


def test_take_gives_the_sequences_in_order():
    pairs = copying(10)
    rows = np.split(pairs.sources.values, np.cumsum(pairs.sources.lengths)[:-1])
    found = take(pairs.sources, np.array([7, 2, 2]))
    assert np.array_equal(found.values, np.concatenate([rows[7], rows[2], rows[2]]))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("options", [{}, {"sampling": 0.3}, {"average": 0.99}])
def test_it_learns_to_turn_sequences_around(options, tied):
    found, pairs = model(tied=tied), copying(400)
    state = train(found, pairs, copying(40, 1), epochs=25, batch_size=16, lr=1e-2, quiet=True, **options)
    assert state.best < 0.3
    results = found.decode([[3, 4, 5], [8, 7]], beam_size=3)
    assert [r.tokens for r in results] == [[5, 4, 3], [7, 8]]


def test_patience_stops_early():
    noise = Pairs.of([[3]] * 40, [[int(t)] for t in np.random.default_rng(0).integers(3, 9, 40)])
    valid = Pairs.of([[3]] * 5, [[3]] * 5)
    state = train(model(), noise, valid, epochs=500, patience=2, batch_size=8, lr=1e-2, quiet=True)
    assert state.epoch < 100 and state.epoch - state.best_epoch >= 2


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_resumed_run_is_the_same_run(tmp_path, average):
    pairs, options = copying(100), TrainOptions(epochs=4, batch_size=8, average=average)

    def trainer(name):
        return Trainer(model(0.2), pairs, options, copying(20, 1), files=RunFiles.of(str(tmp_path / name)), quiet=True)

    whole = trainer("whole")
    whole.run()
    first = trainer("parts")
    steps = itertools.count()
    step = first._step

    def stopping(batch):
        step(batch)
        if next(steps) == 17:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)

    first._step = stopping
    first.run()
    assert first.stopped and first.state.step == 18
    second = trainer("parts")
    state = second.run(resume=True)
    assert state.step == whole.state.step
    for key, value in whole.model.state_dict().items():
        assert np.array_equal(value, second.model.state_dict()[key]), key
    assert len((tmp_path / "parts.csv").read_text().splitlines()) == 5


@pytest.mark.parametrize(
    "options, words",
    [
        ({}, "either epochs or minutes"),
        ({"epochs": 1, "minutes": 1}, "either epochs or minutes"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1, "sampling": 2}, "sampling"),
        ({"epochs": 1, "lr": -1}, "lr"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        TrainOptions(**options)


# ---- text and the command line ----------------------------------------------------------------------------------


def test_vocabularies_cut_and_join():
    words = Vocabulary.of("words", ["Hi, you two!", "Hi you"], 2)
    assert words.pieces[3:] == ["Hi", "you"]
    assert words.encode("you, Hi") == [4, 0, 3] and words.decode([3, 4]) == "Hi you"
    letters = Vocabulary.of("characters", ["ab a"])
    assert letters.decode(letters.encode("ba b")) == "ba b"
    assert Vocabulary.of("symbols", ["AH0 B"]).encode("B AH0") == [4, 3]


@pytest.mark.parametrize(
    "text, words", [("a\tb\nc d\n", "line 2: expected a source, a tab"), ("\n", "got none"), ("\tb\n", "line 1")]
)
def test_bad_pairs(tmp_path, text, words):
    (tmp_path / "pairs.tsv").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_pairs(tmp_path / "pairs.tsv")


def test_the_command_trains_and_decodes(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    rows = ["".join(rng.choice(list("abcd"), rng.integers(1, 5))) for _ in range(300)]
    (tmp_path / "pairs.tsv").write_text("".join(f"{row}\t{' '.join(row[::-1].upper())}\n" for row in rows))
    name = tmp_path / "out" / "turn"
    words = f"--target-unit symbols --hidden 32 --embedding 8 --batch 8 --epochs 10 --lr 0.01 --dropout 0 --out {name}"
    assert cli.main(["seq2seq", "train", str(tmp_path / "pairs.tsv"), *words.split()]) == 0
    said = capsys.readouterr().out
    assert "285 pairs to train on, 15 held out" in said and "validation loss" in said
    assert name.with_suffix(".csv").exists() and (tmp_path / "out" / "turn.loss.png").read_bytes().startswith(PNG)

    def decode(*options):
        monkeypatch.setattr("sys.stdin", io.StringIO("abc\ndd\n"))
        assert cli.main(["seq2seq", "decode", str(name), *options]) == 0
        return capsys.readouterr().out.splitlines()

    assert decode() == ["C B A", "D D"]
    scored = decode("--n-best", "2", "--scores", "--beam", "3")
    assert len(scored) == 4 and scored[0].split("\t")[1] == "C B A" and float(scored[0].split("\t")[0]) < 0
    decode("--attention", str(tmp_path / "look.png"))
    assert (tmp_path / "look.png").read_bytes().startswith(PNG)
    assert Translator.load(f"{name}.safetensors").source.unit == "characters"


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert cli.main(["seq2seq", "train", str(tmp_path / "none.tsv")]) == 2
    assert "none.tsv" in capsys.readouterr().err
    (tmp_path / "pairs.tsv").write_text("one line\n")
    assert cli.main(["seq2seq", "train", str(tmp_path / "pairs.tsv")]) == 2
    assert "expected a source, a tab and a target" in capsys.readouterr().err
