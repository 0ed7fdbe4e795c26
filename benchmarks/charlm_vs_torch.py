"""A character language model side by side with PyTorch: what it learns, and how fast.

    python benchmarks/charlm_vs_torch.py --data FILE [--part learning|speed|command] [--threads N]

learning   char-rnn's 2 x 128 LSTM: same model, data, batches, hyperparameters, schedule and number of steps, three
           seeds each. Every engine starts from its own random weights; all are validated by the same function.
speed      the whole training step (forward, loss, backward, clipping, Adam) of a 2 x 256 LSTM and GRU, T 64, B 64,
           vocabulary 96, on random text. One engine a process, the engines in turns, best and median of all steps.
command    `rnn-core train`, as a command, against a script that does the same with PyTorch: from the start of the
           process to its end, imports, reading, one epoch of the same model, validation and saving included.

PyTorch is at its best: one nn.LSTM call a piece of text, fused Adam, data ready before the clock starts.
The result is Markdown.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ENGINES = ("rnn_core", "torch")
LEARNING = {"layers": 2, "hidden": 128, "embedding": 128, "batch": 50, "length": 50, "lr": 2e-3, "clip": 5.0}
SPEED = {"layers": 2, "hidden": 256, "embedding": 256, "batch": 64, "length": 64, "lr": 2e-3, "clip": 5.0}
MODEL_SIZES = ("layers", "hidden", "embedding")
BETAS = (0.9, 0.99)
VOCABULARY = 96


# ---- the two engines: step(x, y, lr) trains on tokens x and targets y, (T, B) ---------------------------------


class OwnEngine:
    def __init__(self, letters: str, cell: str, sizes: dict, seed: int) -> None:
        from rnn_core import charlm, optim

        self.model = charlm.CharLM(letters, cell=cell, seed=seed, **{name: sizes[name] for name in MODEL_SIZES})
        self.optimiser = optim.Adam(self.model.params, lr=sizes["lr"], betas=BETAS)
        self.clip, self.state = sizes["clip"], None

    def step(self, x: np.ndarray, y: np.ndarray, lr: float) -> float:
        from rnn_core import clipping, losses

        model = self.model
        logits, self.state, tape = model.forward(x, self.state)
        loss, dlogits = losses.cross_entropy(logits, y, out=logits)
        model.zero_grad()
        model.backward(tape, dlogits)
        clipping.clip_grad_norm(model.grads, self.clip)
        self.optimiser.lr = lr
        self.optimiser.step(model.grads)
        return loss

    def tensors(self) -> dict[str, np.ndarray]:
        return self.model.state_dict()


class TorchEngine:
    def __init__(self, letters: str, cell: str, sizes: dict, seed: int) -> None:
        import torch

        torch.manual_seed(seed)
        embedding, hidden = sizes["embedding"], sizes["hidden"]
        self.model = torch.nn.ModuleDict(
            {
                "embedding": torch.nn.Embedding(len(letters), embedding),
                "rnn": getattr(torch.nn, cell.upper())(embedding, hidden, sizes["layers"]),
                "head": torch.nn.Linear(hidden, len(letters)),
            }
        )
        self.optimiser = torch.optim.Adam(self.model.parameters(), lr=sizes["lr"], betas=BETAS, fused=True)
        self.clip, self.state = sizes["clip"], None

    def step(self, x: np.ndarray, y: np.ndarray, lr: float) -> float:
        import torch

        model = self.model
        output, state = model["rnn"](model["embedding"](torch.from_numpy(x)), self.state)
        self.state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        loss = torch.nn.functional.cross_entropy(model["head"](output).flatten(0, 1), torch.from_numpy(y).flatten())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), self.clip, foreach=True)
        self.optimiser.param_groups[0]["lr"] = lr
        self.optimiser.step()
        return loss.item()

    def tensors(self) -> dict[str, np.ndarray]:
        return {key: tensor.detach().numpy() for key, tensor in self.model.state_dict().items()}


def new_engine(name: str, threads: int, *arguments: object) -> OwnEngine | TorchEngine:
    if name == "torch":
        import torch

        torch.set_num_threads(threads)
        return TorchEngine(*arguments)
    from rnn_core import config

    config.set_num_threads(threads)
    return OwnEngine(*arguments)


# ---- what runs in a process of its own ------------------------------------------------------------------------


def learn(engine: str, threads: int, data: str, seed: int, steps: int, cell: str = "lstm",
          command: bool = False) -> dict[str, float]:
    """Train for `steps` (0: an epoch); validation loss on the last twentieth, and characters a second."""
    from rnn_core.charlm import CharLM
    from rnn_core.text import Streams, read_texts, split, vocabulary
    from rnn_core.train import evaluate

    sizes = SPEED if command else LEARNING
    text = read_texts([data])
    judge = CharLM(vocabulary(text), cell=cell, **{name: sizes[name] for name in MODEL_SIZES})
    training, held_out = split(judge.encode(text), 0.05)
    streams = Streams(training, sizes["batch"], sizes["length"])
    steps = steps or streams.chunks
    runner = new_engine(engine, threads, vocabulary(text), cell, sizes, seed)
    began = time.perf_counter()
    for at in range(steps):
        if at % streams.chunks == 0:
            runner.state = None
        x, y = streams.chunk(at % streams.chunks, 0)
        runner.step(x, y, sizes["lr"] * 0.5 * (1 + math.cos(math.pi * at / steps)))
    seconds = time.perf_counter() - began
    judge.load_state_dict(runner.tensors())
    loss = evaluate(judge, held_out, training[-sizes["length"] :])
    return {"loss": loss, "speed": steps * sizes["batch"] * sizes["length"] / seconds}


def pace(engine: str, threads: int, cell: str, seconds: float, clock: str) -> dict[str, list[float]]:
    """The times of single training steps on random text, after a warm-up."""
    now = {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    rng = np.random.default_rng(0)
    text = rng.integers(0, VOCABULARY, (SPEED["length"] + 1, SPEED["batch"]))
    letters = "".join(map(chr, range(32, 32 + VOCABULARY)))
    runner = new_engine(engine, threads, letters, cell, SPEED, 0)
    for _ in range(5):
        runner.step(text[:-1], text[1:], 1e-3)
    times: list[float] = []
    while sum(times) < seconds:
        began = now()
        runner.step(text[:-1], text[1:], 1e-3)
        times.append(now() - began)
    return {"times": times}


def in_process(what: str, **arguments: object) -> dict:
    words = [sys.executable, __file__, "--worker", json.dumps({"what": what, **arguments})]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


# ---- the report -----------------------------------------------------------------------------------------------


def report_learning(data: str, threads: int, steps: int, seeds: int) -> None:
    print(f"\n2 x 128 LSTM, batch 50, 50 steps, Adam 2e-3 and a cosine, clip 5, {steps} steps, {threads} threads\n")
    print("| engine | validation loss, nats a character | mean | characters a second, best |\n|---|---|---|---|")
    means = {}
    found = {name: [] for name in ENGINES}
    for seed in range(seeds):
        for name in ENGINES:
            arguments = {"engine": name, "threads": threads, "data": data, "seed": seed, "steps": steps}
            found[name].append(in_process("learn", **arguments))
    for name, runs in found.items():
        means[name] = statistics.mean(run["loss"] for run in runs)
        losses = " ".join(f"{run['loss']:.4f}" for run in runs)
        print(f"| {name} | {losses} | {means[name]:.4f} | {max(run['speed'] for run in runs):,.0f} |")
    print(f"\nDifference of the means: {100 * (means['rnn_core'] / means['torch'] - 1):+.2f} %", flush=True)


def report_speed(threads: int, rounds: int, seconds: float, clock: str) -> None:
    print(f"\nWhole step, 2 x 256, T 64, B 64, vocabulary {VOCABULARY}, Adam, clip, {threads} threads, {clock} time\n")
    print("| cell | engine | best, ms | median, ms | times torch (best, median) |\n|---|---|---|---|---|")
    for cell in ("lstm", "gru"):
        times: dict[str, list[float]] = {name: [] for name in ENGINES}
        for _ in range(rounds):
            for name in ENGINES:
                arguments = {"engine": name, "threads": threads, "cell": cell, "seconds": seconds, "clock": clock}
                times[name] += in_process("pace", **arguments)["times"]
        best, median = ({name: 1e3 * f(times[name]) for name in ENGINES} for f in (min, statistics.median))
        for name in ENGINES:
            ratio = f"{best['torch'] / best[name]:.2f}, {median['torch'] / median[name]:.2f}"
            print(f"| {cell.upper()} | {name} | {best[name]:.2f} | {median[name]:.2f} | {ratio} |", flush=True)


def own_command(data: str, cell: str, threads: int, folder: str) -> list[str]:
    sizes = {"layers": "layers", "hidden": "hidden", "embedding": "embedding", "batch": "batch", "seq-length": "length"}
    words = [word for flag, name in sizes.items() for word in (f"--{flag}", str(SPEED[name]))]
    return [sys.executable, "-m", "rnn_core.cli", "train", data, "--cell", cell, *words, "--lr", str(SPEED["lr"]),
            "--epochs", "1", "--threads", str(threads), "--out", f"{folder}/model"]


def report_command(data: str, threads: int, rounds: int) -> None:
    print(f"\n`rnn-core train` and a script, 2 x 256, T 64, B 64, one epoch of {data}, {threads} threads\n")
    print("| cell | rnn_core, s | torch, s | times torch |\n|---|---|---|---|")
    for cell in ("lstm", "gru"):
        best = dict.fromkeys(ENGINES, math.inf)
        for _ in range(rounds):
            for name in ENGINES:
                began = time.perf_counter()
                if name == "torch":
                    in_process("learn", engine=name, threads=threads, data=data, seed=0, steps=0, cell=cell,
                               command=True)
                else:
                    with tempfile.TemporaryDirectory() as folder:
                        words = own_command(data, cell, threads, folder)
                        subprocess.run(words, check=True, capture_output=True)
                best[name] = min(best[name], time.perf_counter() - began)
        ratio = best["torch"] / best["rnn_core"]
        print(f"| {cell.upper()} | {best['rnn_core']:.1f} | {best['torch']:.1f} | {ratio:.2f} |", flush=True)


def machine() -> str:
    import torch

    import rnn_core

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    cpu = rnn_core.show_config("dicts")["cpu"]["instruction set"]
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}, PyTorch {torch.__version__}"
    return f"{model}, {cpu}; rnn_core {rnn_core.__version__}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a text file (learning, command)")
    parser.add_argument("--part", choices=("learning", "speed", "command"), help="default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=2000, help="of learning")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="processes an engine, in turns (speed)")
    parser.add_argument("--seconds", type=float, default=4.0, help="measured in each of them")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: one thread, busy machine")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        arguments = json.loads(options.worker)
        print(json.dumps({"learn": learn, "pace": pace}[arguments.pop("what")](**arguments)))
        return
    parts = (options.part,) if options.part else ("learning", "speed", "command")
    if parts != ("speed",) and not options.data:
        parser.error("--data is needed to compare learning and commands")
    print(machine(), flush=True)
    if "learning" in parts:
        report_learning(options.data, options.threads, options.steps, options.seeds)
    if "speed" in parts:
        report_speed(options.threads, options.rounds, options.seconds, options.clock)
    if "command" in parts:
        report_command(options.data, options.threads, max(1, options.rounds - 1))


if __name__ == "__main__":
    main()
