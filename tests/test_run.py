"""rnn_core.run: names of files, the log, plain progress, and noted interrupts."""

from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path

import pytest

from rnn_core import run
from rnn_core.run import Interrupts, Log, Progress, RunFiles, interrupts, model_file, read_log


@pytest.mark.parametrize("name", ["demo/m", "demo/m.safetensors", "demo/m.last.safetensors"])
def test_a_run_may_be_named_with_the_ending_of_its_checkpoints(name):
    files = RunFiles.of(name)
    assert files.best == Path("demo/m.safetensors") and files.last == Path("demo/m.last.safetensors")
    assert files.beside(".loss.png") == Path("demo/m.loss.png")


@pytest.mark.parametrize("name", ["", "demo/", ".safetensors"])
def test_a_run_needs_a_name(name):
    with pytest.raises(ValueError, match="out: expected the name of a file"):
        RunFiles.of(name)


def test_the_ending_of_a_model_may_be_left_out(tmp_path):
    plain = tmp_path / "m"
    assert model_file(str(plain)) == tmp_path / "m.safetensors"
    assert model_file(f"{plain}.safetensors") == tmp_path / "m.safetensors"
    plain.write_text("")
    assert model_file(str(plain)) == plain


def test_the_log_is_readable_after_every_row_and_goes_on_where_it_is_told(tmp_path):
    path = tmp_path / "log.csv"
    log = Log(path, ("step", "loss", "other"))
    for step in range(4):
        log.add(step=step, loss=0.1234567 * step, other=None if step % 2 else 10.0**12)
        assert len(read_log(path)) == step + 1
    assert path.read_text() == (
        "step,loss,other\n0,0,1000000000000\n1,0.123457,\n2,0.246913,1000000000000\n3,0.37037,\n"
    )
    again = Log(path, ("step", "loss", "other"), upto=1)
    again.add(step=2, loss=5.0)
    assert [row["loss"] for row in read_log(path)] == [0, 0.123457, 5] and math.isnan(again.rows[1]["other"])
    assert Log(path, ("step", "loss", "other")).rows == [] and read_log(path) == []


def test_what_is_no_log_is_refused(tmp_path):
    path = tmp_path / "log.csv"
    assert read_log(path) == []
    path.write_text("step,loss\n1,two\n")
    with pytest.raises(ValueError, match="expected the log"):
        read_log(path)
    path.write_text("step,loss\n1,2\n3")
    assert read_log(path) == [{"step": 1.0, "loss": 2.0}]
    path.write_text("loss\n1\n")
    with pytest.raises(ValueError, match="expected the log"):
        Log(path, ("step", "loss"), upto=3)


def test_progress_without_a_terminal_is_plain_lines(capsys, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(run.time, "monotonic", lambda: clock[0])
    shown = Progress(200.0, start=50.0)
    assert not shown.due()
    clock[0] += 30
    assert shown.due()
    shown.show(100.0, "loss 1.0")
    assert not shown.due()
    shown.say("one")
    shown.say("two", unless_after=1.0)
    clock[0] += 3600
    shown.show(101.0, "loss 0.9")
    shown.close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [" 50.0 %  loss 1.0  01:00 left", "one"] and lines[2].endswith("1:57:26 left")


def test_interrupts_are_noted_and_a_second_one_is_not_held_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with interrupts() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_another_thread_has_no_signals_to_note():
    found: list[Interrupts] = []

    def work():
        with interrupts() as stop:
            found.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not found[0]
