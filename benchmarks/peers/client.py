"""The parent's side of an engine's process: start it, talk to it, hold it still while another one is timed."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.limits import pick_cpus

ENGINES = ("rnn_core", "torch", "onnxruntime", "openvino", "jax", "tensorflow")
_MODULES = {name: f"{name}_engine" for name in ENGINES}
# Where an instruction set can be forbidden to a peer; ONNX Runtime has no such switch.
_AVX2 = {
    "rnn_core": {"RNN_CORE_ISA": "avx2"},
    "torch": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "openvino": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "jax": {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"},
    "tensorflow": {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}


class EngineFailed(RuntimeError):
    """An engine's process died, hung or raised."""


def can_lower(name: str, isa: str | None) -> bool:
    """Whether an engine can be kept to an instruction set."""
    return isa is None or name in _AVX2


class Client:
    """One engine in its own process, stopped (SIGSTOP) between requests: no spinning worker steals a core."""

    def __init__(self, name: str, threads: int, isa: str | None = None, stderr=None):
        self.name = name
        cpus = ",".join(map(str, pick_cpus(threads)))
        env = os.environ | {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RNN_CORE_NUM_THREADS")}
        env |= _AVX2[name] if isa == "avx2" else {}
        command = [sys.executable, "-m", "benchmarks.peers.worker", _MODULES[name], str(threads), cpus]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            command, env=env, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
        )
        self._stopped = False

    def ask(self, do: str, timeout: float = 300.0, **request) -> dict:
        """Send one request and wait for its answer; `unsupported` in the answer is not an error."""
        if self._stopped:
            self._process.send_signal(signal.SIGCONT)
            self._stopped = False
        try:
            self._process.stdin.write(json.dumps({"do": do, **request}).encode() + b"\n")
            self._process.stdin.flush()
            ready, _, _ = select.select([self._process.stdout], [], [], timeout)
            line = self._process.stdout.readline() if ready else b""
        except BrokenPipeError:
            line = b""
        if not line:
            self.close()
            raise EngineFailed(f"{self.name}: no answer to {do!r} in {timeout:.0f} s, or its process died")
        self._process.send_signal(signal.SIGSTOP)
        self._stopped = True
        answer = json.loads(line)
        if "error" in answer:
            raise EngineFailed(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_) -> None:
        self.close()
