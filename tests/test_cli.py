"""The command rnn-core as a user meets it: what it prints, what it writes, how it stops, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from rnn_core import cli
from rnn_core.charlm import CharLM
from rnn_core.run import read_log

LAST = re.compile(r"validation loss (\d+\.\d{4}) nats/char, best (\d+\.\d{4}), model (\S+)")
SMALL = "--hidden 6 --embedding 4 --batch 4 --seq-length 8 --warmup 3 --validation 0.2".split()
PNG = b"\x89PNG\r\n\x1a\n"


def call(capsys, *words):
    """(exit code, standard output, standard error) of a command line."""
    try:
        code = cli.main([str(word) for word in words])
    except SystemExit as left:
        code = left.code
    return (code, *capsys.readouterr())


def command(*words):
    return [sys.executable, "-u", "-m", "rnn_core.cli", *map(str, words)]


def write_text(folder):
    path = folder / "text.txt"
    path.write_text("to be, or not to be: that is the question.\n" * 20)
    return path


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with contextlib.redirect_stdout(io.StringIO()):
        assert cli.main(["train", str(write_text(folder)), *SMALL, "--epochs", "2", "--out", str(folder / "m")]) == 0
    return folder


@pytest.fixture
def trained(trained_once, tmp_path):
    """The name of a small trained model, one's own copy."""
    for path in trained_once.glob("m.*"):
        shutil.copy(path, tmp_path)
    return tmp_path / "m"


def test_training_writes_its_files_and_ends_with_the_promised_line(text, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    name = tmp_path / "new" / "m"
    code, out, err = call(capsys, "train", text, *SMALL, "--layers", 2, "--epochs", 2, "--out", f"{name}.safetensors")
    assert code == 0 and err == ""
    loss, best, model = LAST.fullmatch(out.splitlines()[-1]).groups()
    assert float(best) <= float(loss) and model == f"{name}.safetensors"
    endings = {".safetensors", ".last.safetensors", ".csv", ".loss.png", ".gradients.png"}
    assert {path.name for path in name.parent.iterdir()} == {"m" + ending for ending in endings}
    for ending in (".loss.png", ".gradients.png"):
        assert (name.parent / f"m{ending}").read_bytes().startswith(PNG)
    rows = read_log(name.parent / "m.csv")
    assert rows[-1]["validation_loss"] == pytest.approx(float(loss), abs=1e-4)
    assert CharLM.load(model).config["layers"] == 2


def test_without_matplotlib_training_works_and_says_that_it_drew_nothing(text, tmp_path, capsys, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, _ = call(capsys, "train", text, *SMALL, "--epochs", 1, "--out", tmp_path / "m")
    assert code == 0 and "no pictures drawn: matplotlib is not installed" in out
    assert LAST.fullmatch(out.splitlines()[-1])
    assert not list(tmp_path.glob("*.png"))


def test_ctrl_c_saves_and_says_how_to_go_on(text, tmp_path, capsys):
    name = tmp_path / "m"
    words = command("train", text, *SMALL, "--epochs", 10**6, "--threads", 1, "--out", name)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        seen = [process.stdout.readline() for _ in range(3)]  # it trains by the time it has validated
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "", (seen, out, err)
    assert "validation" in seen[-1]
    step = int(re.search(r"stopped at step (\d+), saved; go on with: rnn-core train --resume", out).group(1))
    assert out.splitlines()[-1].endswith(f"--resume --out {name}")
    code, out, _ = call(capsys, "train", "--resume", "--out", name, "--epochs", 10**6, "--minutes", 0.005)
    assert code == 0 and f"goes on at step {step}" in out and LAST.fullmatch(out.splitlines()[-1])


def test_generation_writes_the_prompt_and_as_many_characters_as_asked(trained, capsys):
    for model in (f"{trained}.last.safetensors", f"{trained}.safetensors", trained):
        code, out, err = call(capsys, "generate", model, "--prompt", "to be", "--length", 30, "--seed", 1)
        assert code == 0 and err == "" and out.startswith("to be") and len(out) == 5 + 30 + 1
    again = call(capsys, "generate", trained, "--prompt", "to be", "--length", 30, "--seed", 1)[1]
    other = call(capsys, "generate", trained, "--prompt", "to be", "--length", 30, "--seed", 2)[1]
    assert again == out != other
    greedy = [
        call(capsys, "generate", trained, "--length", 9, *words)[1] for words in (["--temperature", 0], ["--top-k", 1])
    ]
    assert greedy[0] == greedy[1]


def test_generation_into_a_closed_pipe_ends_quietly(trained):
    words = command("generate", trained, "--length", 10**8)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(50)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 0


def test_info_names_what_it_runs_on(capsys):
    code, out, _ = call(capsys, "info")
    assert code == 0
    for word in ("instruction set", "threads", "numpy", "python"):
        assert word in out


def test_help_and_version(capsys):
    assert call(capsys, "--version")[0] == 0
    code, out, _ = call(capsys, "train", "--help")
    assert code == 0 and "--seq-length" in out and "--minutes" in out
    code, out, _ = call(capsys, "--help")
    assert code == 0 and "generate" in out and "info" in out


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "required: COMMAND"),
        (["tran"], "invalid choice"),
        (["train", "--cell", "tree"], "invalid choice: 'tree'"),
        (["train", "--hidden", "many"], "invalid int value: 'many'"),
        (["train", "TEXT", "--hidden", "0"], "hidden"),
        (["train", "TEXT", "--dropout", "2"], "dropout: expected at least 0 and below 1"),
        (["train", "TEXT", "--lr", "nan"], "lr: expected a finite number"),
        (["train", "TEXT", "--validation", "0"], "hold out"),
        (["train", "TEXT", "--batch", "1000"], "characters to train on"),
        (["train", "TEXT", "--threads", "0"], "expected 1"),
        (["train", "none.txt"], "none.txt: No such file"),
        (["train", "."], "Is a directory"),
        (["train", "--resume", "--out", "none"], "none.last.safetensors: No such file"),
        (["train", "TEXT", "--out", "TEXT/m"], "TEXT"),
        (["generate", "none"], "none.safetensors: No such file"),
        (["generate", "MODEL", "--prompt", "Ω"], "got 'Ω'"),
        (["generate", "MODEL", "--top-k", "0"], "top_k"),
        (["generate", "MODEL", "--temperature", "-1"], "temperature"),
        (["generate", "MODEL", "--length", "-1"], "length"),
        (["generate", "TEXT"], "not a whole safetensors file"),
        (["train", "--resume", "--out", "MODEL", "--hidden", "7"], "hidden: expected 6, as the run began, got 7"),
        (["train", "--resume", "--out", "MODEL", "OTHER"], "another one"),
    ],
)
def test_bad_options_and_files_get_one_line_and_exit_code_2(words, message, text, trained, tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("something else\n" * 40)
    before = {path: path.read_bytes() for path in tmp_path.glob("m.*")}
    names = {"TEXT": str(text), "MODEL": str(trained), "OTHER": str(other), "TEXT/m": f"{text}/m"}
    code, out, err = call(capsys, *[names.get(word, word) for word in words])
    assert code == 2 and out == ""
    assert err.startswith("rnn-core") and err.count("\n") == 1
    assert names.get(message, message) in err
    assert {path: path.read_bytes() for path in tmp_path.glob("m.*")} == before


def test_a_damaged_checkpoint_is_refused_and_the_other_still_loads(trained, capsys):
    last = trained.parent / "m.last.safetensors"
    last.write_bytes(last.read_bytes()[:-10])
    code, _, err = call(capsys, "train", "--resume", "--out", trained)
    assert code == 2 and "m.last.safetensors" in err and err.count("\n") == 1
    assert call(capsys, "generate", trained, "--length", 5)[0] == 0


@pytest.mark.skipif(os.name != "posix" or not hasattr(os, "openpty"), reason="needs a pseudo-terminal")
def test_on_a_terminal_there_is_a_live_bar(text, tmp_path):
    import termios

    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    words = command("train", text, *SMALL, "--minutes", 0.03, "--out", tmp_path / "m")
    process = subprocess.Popen(words, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # how Linux says that the other side is gone
            break
        if not part:
            break
        seen += part
    os.close(master)
    assert process.wait(timeout=60) == 0
    shown = seen.decode()
    for word in ("nats", "bits/char", "chars/s", "grad", "%"):
        assert word in shown
    assert LAST.search(shown.strip().splitlines()[-1])
