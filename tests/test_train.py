"""rnn_core.train: the loss that is reported, the learning rate, and runs that are stopped and resumed."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from rnn_core import checkpoint, losses, train
from rnn_core.charlm import CharLM
from rnn_core.run import RunFiles, read_log
from rnn_core.train import Diverged, Options, Trainer, evaluate

TINY = Options(hidden=6, embedding=4, batch=3, seq_length=5, epochs=2, warmup=3, validation=0.2)


def text_of(length, seed=0):
    rng = np.random.default_rng(seed)
    return "".join(rng.choice(["the ", "cat ", "sat.\n", "on ", "a mat "], length // 3))[:length]


def new_run(folder, options=TINY, length=400, **changes):
    return Trainer(text_of(length), replace(options, **changes), RunFiles(str(folder / "run")))


# ---- loss and learning rate ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [0, 1, 40])
def test_evaluation_is_the_mean_over_the_text(lead):
    """In few streams and small pieces it is exact for one stream; several with a lead come close to it."""
    rng = np.random.default_rng(0)
    model = CharLM("abcdefgh", hidden=8, embedding=4, seed=3)
    for tokens in (rng.integers(0, 8, 700), rng.integers(0, 8, 5000)):
        before = rng.integers(0, 8, lead)
        whole = np.concatenate([before, tokens])
        logits, _ = model(whole[:-1, None])
        skipped = max(lead - 1, 0)
        wanted, _ = losses.cross_entropy(logits[skipped:], whole[1:, None][skipped:])
        found = evaluate(model, tokens.astype(np.uint8), before.astype(np.uint8))
        assert found == pytest.approx(float(wanted), rel=1e-5 if len(tokens) < 1000 else 1e-3)
    assert evaluate(model, tokens, before, stop=True) is None


def test_the_learning_rate_rises_and_falls_to_nothing(tmp_path):
    run = new_run(tmp_path, epochs=4, lr=0.1)
    rates = []
    for step in range(4 * run.streams.chunks):
        run.at.step = step
        rates.append(run.learning_rate())
    assert np.argmax(rates) <= 3 and 0.09 < max(rates) <= 0.1
    assert all(a > b for a, b in zip(rates[3:], rates[4:]))
    assert rates[-1] < 0.001 < rates[0]
    run.options, run.at.step = replace(run.options, warmup=1000), 6
    assert run.learning_rate() == pytest.approx(0.1 * 10 * run.progress, rel=0.05)  # not a tenth of the run yet
    run.options = replace(run.options, warmup=0, epochs=None, minutes=2.0)
    for seconds, part in ((0, 1.0), (60, 0.5), (120, 0.0), (130, 0.0)):
        run.at.seconds = seconds
        assert run.learning_rate() == pytest.approx(0.1 * part)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_simple_text_is_learned(tmp_path, cell):
    options = replace(TINY, cell=cell, hidden=16, epochs=15, lr=0.02, batch=4, seq_length=10)
    result = Trainer("abcd" * 300, options, RunFiles(str(tmp_path / "run"))).train()
    assert result.finished and result.best <= result.validation < 0.05


def test_a_time_limit_ends_a_run(tmp_path):
    result = new_run(tmp_path, epochs=None, minutes=0.005).train()
    assert result.finished and result.position.seconds >= 0.3
    assert result.rows[-1]["validation_loss"] == pytest.approx(result.validation, rel=1e-5)


def test_long_epochs_are_validated_in_between(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "LONG_EPOCH", 10)
    run = new_run(tmp_path, length=800, epochs=1)
    rows = [row["step"] for row in run.train().rows if not np.isnan(row["validation_loss"])]
    assert len(rows) == 4 and rows[-1] == run.streams.chunks


def test_a_run_that_diverges_says_so_and_keeps_its_best(tmp_path):
    run = new_run(tmp_path, optimiser="sgd", lr=1e38, clip=0.0, warmup=0, cell="rnn")
    with pytest.raises(Diverged, match="step"):
        run.train()


# ---- stop and resume ----------------------------------------------------------------------------------------


def stopping_at(monkeypatch, step, inside="_step"):
    """Let Ctrl-C come in the middle of the given step, or of the validation after it."""
    real = getattr(Trainer, inside)

    def noted(self, *arguments):
        if self.at.step >= step:
            monkeypatch.setattr(Trainer, inside, real)
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *arguments)

    monkeypatch.setattr(Trainer, inside, noted)


def outcome(folder):
    """All that a run leaves, without its clock: tensors, metadata, log."""
    found = []
    for name in ("run.safetensors", "run.last.safetensors"):
        tensors, metadata = checkpoint.read(folder / name)
        position = metadata["config"].get("position", {})
        position.pop("seconds", None)
        position.pop("step_seconds", None)
        found.append({key: (array.dtype.str, array.shape, array.tobytes()) for key, array in tensors.items()})
        found.append(json.dumps(metadata, sort_keys=True))
    rows = list(csv.DictReader((folder / "run.csv").open()))
    return [*found, [{key: row[key] for key in row if key != "seconds"} for row in rows]]


def resumed(folder, length=400, **changes):
    files = RunFiles(str(folder / "run"))
    return Trainer.resume(checkpoint.load(files.last), text_of(length), files, changes)


@pytest.mark.parametrize(
    "changes, stops",
    [
        ({}, [(7, "_step")]),
        ({"cell": "gru", "optimiser": "sgd", "lr": 0.1}, [(0, "_step"), (30, "_step")]),
        ({"cell": "rnn", "optimiser": "rmsprop"}, [(21, "_validate")]),
        ({"layers": 2, "dropout": 0.3, "optimiser": "adam"}, [(4, "_step"), (5, "_step"), (25, "_step")]),
    ],
)
def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path, monkeypatch, changes, stops):
    monkeypatch.setattr(train, "LOG_STEPS", 7)  # some of the stops fall on a row of the log
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    assert new_run(whole, **changes).train().finished
    run = new_run(parts, **changes)
    for step, inside in stops:
        stopping_at(monkeypatch, step, inside)
        result = run.train()
        assert not result.finished and result.position.step == (step + 1 if inside == "_step" else step)
        run = resumed(parts)
    assert run.train().finished
    assert outcome(parts) == outcome(whole)


def test_any_number_of_threads_trains_to_the_same_bits(tmp_path, threads):
    found = []
    for count in (1, 2, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        threads(count)
        assert new_run(folder, hidden=48, embedding=20, layers=2, dropout=0.2, batch=9, epochs=1).train().finished
        found.append(outcome(folder))
    assert found[0] == found[1] == found[2]


def test_work_after_the_last_checkpoint_is_done_again_alike(tmp_path):
    """A power cut: the log and the best model are ahead of the last checkpoint."""
    run = new_run(tmp_path, epochs=3)
    middle = tmp_path / "run.last.safetensors"
    real, copies = run.save, []
    run.save = lambda: copies.append(real().read_bytes())
    run.train()
    wanted = outcome(tmp_path)
    middle.write_bytes(copies[0])
    assert resumed(tmp_path).train().finished
    assert outcome(tmp_path) == wanted


def test_a_finished_run_can_be_given_more(tmp_path):
    first = new_run(tmp_path).train()
    again = resumed(tmp_path).train()
    assert again.finished and again.best == first.best and again.position.step == first.position.step
    longer = resumed(tmp_path, epochs=4).train()
    assert longer.finished and longer.position.step == 2 * first.position.step
    steps = [row["step"] for row in read_log(tmp_path / "run.csv")]
    assert steps == sorted(set(steps)) and steps[-1] == longer.position.step


def test_another_run_is_not_resumed(tmp_path):
    new_run(tmp_path).train()
    before = outcome(tmp_path)
    with pytest.raises(ValueError, match="another one"):
        resumed(tmp_path, length=399)
    with pytest.raises(ValueError, match="hidden: expected 6, as the run began, got 7"):
        resumed(tmp_path, hidden=7)
    best = checkpoint.load(tmp_path / "run.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match="expected the last checkpoint of a run"):
        Trainer.resume(best, text_of(400), RunFiles(str(tmp_path / "run")))
    assert outcome(tmp_path) == before


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cell": "tree"}, "cell: expected one of lstm, gru, rnn, got 'tree'"),
        ({"optimiser": "magic"}, "optimiser: expected one of"),
        ({"hidden": 0}, "hidden"),
        ({"seed": -1}, "seed"),
        ({"dropout": 1.0}, "dropout: expected at least 0 and below 1, got 1.0"),
        ({"lr": 0.0}, "lr: expected more than 0"),
        ({"clip": -1.0}, "clip"),
        ({"minutes": 0}, "minutes"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_bad_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)
