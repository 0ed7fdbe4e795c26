"""One layer and many Python threads, Ctrl-C, and a fork after use."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cases import KINDS, Case, cell_of, parts, public, python_env, run_python, same

import rnn_core as rc
from rnn_core._step import Stepper

# ---- Many Python threads -------------------------------------------------------------------------------------------


def in_threads(work, n=8):
    """work(i) for i in range(n), all at once in threads of their own; raises what they raise."""
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(work, range(n)))


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_call_one_layer(kind, threads):
    threads(2)
    sizes = {
        "hidden_size": 70,
        "input_size": 20,
        "num_layers": 2,
        "bidirectional": True,
        "bias": True,
        "proj_size": 0,
        "B": 6,
    }
    cases = [Case.random(kind, 30, **sizes, T=T) for T in (3, 11, 30)]
    layer = cases[0].layer()
    arrays = [case.arrays() for case in cases]
    want = [layer(x, public(state), case.lengths) for case, (x, state, *_) in zip(cases, arrays)]

    def work(i):
        for turn in range(12):
            n = (i + turn) % len(cases)
            x, state, _, _ = arrays[n]
            y, final = layer(x, public(state), cases[n].lengths)
            same((y, *parts(final)), (want[n][0], *parts(want[n][1])), i, turn, cases[n])

    in_threads(work)


@pytest.mark.parametrize("kind", KINDS)
def test_tapes_made_at_once_give_the_gradients_of_one_thread(kind, threads):
    threads(2)
    case = Case.random(kind, 31, hidden_size=50, T=12, B=5)
    layer = case.layer()
    x, state, dy, dstate = case.arrays()

    def gradients(tape):
        layer.zero_grad()
        dx, dinitial = layer.backward(tape, dy, public(dstate))
        return (dx, *parts(dinitial), *(g.copy() for g in layer.grads.values()))

    want = gradients(layer.forward(x, public(state), case.lengths)[2])
    for tape in in_threads(lambda _: layer.forward(x, public(state), case.lengths)[2]):
        same(gradients(tape), want, case)


@pytest.mark.parametrize("kind", KINDS)
def test_many_threads_step_one_cell(kind):
    sizes = {"hidden_size": 33, "num_layers": 1, "bidirectional": False, "proj_size": 0, "T": 1, "B": 3}
    case = Case.random(kind, 32, **sizes, with_state=True)
    cell = cell_of(case.layer(), case)
    x, state, _, _ = case.arrays()
    x, state = x[0], tuple(s[0] for s in state)

    def work(_):
        held = public(tuple(s.copy() for s in state))
        for _ in range(200):
            held = cell.step(x, held, out=held)
        return parts(held)

    want = work(0)
    for found in in_threads(work):
        same(found, want, case)


def test_a_step_that_packs_leaves_the_memory_of_one_that_runs():
    """While one thread packs for another batch size, a second one's step may begin: it keeps what it computes in."""
    cell = rc.GRUCell(512, 512, seed=0)
    rng = np.random.default_rng(0)
    x, h, small = (rng.standard_normal((rows, 512), dtype=np.float32) for rows in (2000, 2000, 1))
    want, found = cell(x, h), np.empty_like(h)
    running = []

    def pack():
        if not running and stepper is not None:  # the second call: another thread's step comes in between
            running.append(threading.Thread(target=stepper.step, args=(x, h, found)))
            running[0].start()
            while running[0].is_alive() and not stepper.busy:
                time.sleep(0)
        return cell._weights()

    stepper = None
    made = Stepper(cell._buffers, pack)
    assert made.step(x, h, found) is found
    stepper = made
    out = np.empty_like(small)
    assert stepper.step(small, small, out) is None  # left to the general path
    running[0].join()
    np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize("kind", KINDS)
def test_after_writing_beside_readers_everybody_reads_the_new_weights(kind):
    """What a call gives while its weights are being written is open; it ends, and the next one is up to date."""
    case = Case.random(kind, 33, hidden_size=60, num_layers=1, proj_size=0, T=2, B=2, lengths=None)
    layer, fresh = case.layer(), case.layer()
    x, state, _, _ = case.arrays()
    key, rng = "weight_hh_l0", case.rng(6)

    def work(i):
        for _ in range(60):
            layer(x, public(state))
            if i == 0:
                layer.assign(key, rng.uniform(-1, 1, layer.params[key].shape).astype("float32"))
        return layer(x, public(state))[0]

    for _ in range(5):
        in_threads(work, 4)
        fresh.load_state_dict(layer.state_dict())
        want = fresh(x, public(state))[0]
        for found in in_threads(lambda _: layer(x, public(state))[0]):
            same(found, want, case)


# ---- Ctrl-C --------------------------------------------------------------------------------------------------------

LONG_CALL = """
import signal, sys, threading, time
import numpy as np
import rnn_core as rc
signal.signal(signal.SIGINT, signal.default_int_handler)
way, threads = sys.argv[1], int(sys.argv[2])
rc.set_num_threads(threads)
dtype = "float64" if way == "float64" else "float32"
layer = rc.LSTM(1, 64, proj_size=2, seed=1) if way == "turns" else rc.LSTM(1, 1536, seed=1, dtype=dtype)
shape = {"backward": (100, 80, 1), "turns": (400000, 40, 1)}.get(way, (20000, 1, 1))
x = np.ones(shape, dtype)
call = {"forward": lambda: layer.forward(x)}.get(way, lambda: layer(x))
if way == "backward":
    y, _, tape = layer.forward(x)
    def call():
        while True:
            layer.backward(tape, y)
small = x[:3, :1]
want = layer(small)[0].copy()
print("ready", flush=True)
try:
    call()
    print("ended by itself")
except KeyboardInterrupt:
    print(time.process_time(), flush=True)
print(np.array_equal(layer(small)[0], want))
"""


def processor_seconds(pid):
    """What a process has computed so far: unlike time that passes, the same on a busy machine."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("way", ["infer", "turns", "forward", "backward", "float64"])
def test_ctrl_c_ends_a_long_call(way, threads):
    child = subprocess.Popen(
        [sys.executable, "-c", LONG_CALL, way, str(threads)],
        env=python_env({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "ready\n", child.stderr.read()
        time.sleep(0.2)
        before = processor_seconds(child.pid)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    ended, usable = out.split("\n")[:2]
    assert usable == "True" and child.returncode == 0, (out, err)
    late = float(ended) - before
    assert late < 0.5 * threads, f"computed for {late:.3f} s after the signal; 0.1 a thread on an idle machine"


# ---- Fork ----------------------------------------------------------------------------------------------------------

FORK = """
import os, signal, warnings
import numpy as np
import rnn_core as rc
warnings.simplefilter("ignore", DeprecationWarning)  # fork beside the pool's threads is what is tested
rc.set_num_threads(2)
layer = rc.GRU(64, 300, 2, seed=1)
x = np.random.default_rng(0).standard_normal((20, 16, 64)).astype(np.float32)
def work():
    y, _, tape = layer.forward(x)
    layer.zero_grad()
    dx, _ = layer.backward(tape, y)
    return layer(x)[0].tobytes() + dx.tobytes() + b"".join(g.tobytes() for g in layer.grads.values())
want = work()
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        grandchild = os.fork()
        good = work() == want
        if grandchild:
            good = good and os.waitpid(grandchild, 0)[1] == 0
        os._exit(0 if good else 1)
    assert work() == want
    assert os.waitpid(child, 0)[1] == 0
print("good")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_both_sides_of_a_fork_work():
    assert run_python(FORK) == "good\n"


WORKERS = """
import multiprocessing
import numpy as np
import rnn_core as rc
rc.set_num_threads(2)
layer = rc.LSTM(30, 200, seed=1)
x = np.ones((10, 12, 30), np.float32)
def work(_):
    return layer(x)[0].tobytes()
want = work(0)
with multiprocessing.get_context("fork").Pool(3) as pool:
    assert pool.map(work, range(12)) == [want] * 12
print("good")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_pool_of_forked_workers():
    assert run_python("import warnings; warnings.simplefilter('ignore')\n" + WORKERS) == "good\n"
