"""The published Silero VAD model, streaming, with NumPy and rnn_core: is somebody speaking in these 32 ms?

    pip install --no-deps silero-vad            # for its weights; nothing of it is imported
    python examples/silero_vad.py speech.wav    # 16 kHz, mono, 16 bit: one probability for each 512 samples
    python examples/silero_vad.py --check       # against its ONNX twin under ONNX Runtime, over a minute of sound

The network (https://github.com/snakers4/silero-vad, MIT): a short-time Fourier transform as a convolution, four
convolutions over its magnitudes, one LSTM cell of 128 units, and a linear layer. A frame is 512 samples behind the 64
before it; it makes 4 columns of spectrum, which the strides of the encoder bring down to 1.

The package's silero_vad_16k.safetensors and silero_vad.onnx come from two trainings of this network (6.2.3). So --check
compares twice: with the safetensors' weights put into the ONNX graph, and with the ONNX file as it is, its weights read
into this model.
"""

from __future__ import annotations

import argparse
import sys
import time
import wave
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np

import rnn_core as rc
from rnn_core import weights

RATE, FRAME, CONTEXT = 16000, 512, 64
BINS, WINDOW, HOP = 129, 256, 128
SAFETENSORS, ONNX = "silero_vad_16k.safetensors", "silero_vad.onnx"
# The keys of the safetensors file, and how the names of the same tensors end in the ONNX file.
NAMES = {
    "stft_conv.weight": "stft.forward_basis_buffer",
    **{f"conv{n + 1}.{what}": f"encoder.{n}.reparam_conv.{what}" for n in range(4) for what in ("weight", "bias")},
    **{f"lstm_cell.{what}_{which}": f"rnn.{what}_{which}" for what in ("weight", "bias") for which in ("ih", "hh")},
    "final_conv.weight": "decoder.2.weight",
    "final_conv.bias": "decoder.2.bias",
}


def folder() -> Path:
    """Where pip put the model's files; the package itself, which wants torch, is not imported."""
    try:
        return Path(str(distribution("silero-vad").locate_file("silero_vad/data")))
    except PackageNotFoundError:
        raise SystemExit("silero_vad.py: the weights are not installed: pip install --no-deps silero-vad") from None


def convolution(weight: np.ndarray, bias: np.ndarray | None, taps: slice = slice(None)) -> rc.Linear:
    """A convolution's weight (O, C, K) as a linear layer over rows that hold K columns one after the other."""
    matrix = weight[:, :, taps].transpose(0, 2, 1).reshape(len(weight), -1)
    layer = rc.Linear(matrix.shape[1], len(weight), bias=bias is not None)
    layer.load_state_dict({"weight": matrix} if bias is None else {"weight": matrix, "bias": bias})
    return layer


class SileroVAD:
    """One stream of sound. `model(frame)` takes 512 float32 samples and gives the probability of speech."""

    def __init__(self, tensors: dict[str, np.ndarray] | None = None) -> None:
        tensors = tensors or weights.read(folder() / SAFETENSORS)
        self.fourier = convolution(tensors["stft_conv.weight"], None)  # 256 samples to 129 cosines and 129 sines
        # Of the padding around 2 columns and around 1, the products are zero: these taps are left out.
        taps = slice(None), slice(None), slice(1, 3), slice(1, 2)
        self.encoder = [
            convolution(tensors[f"conv{n}.weight"], tensors[f"conv{n}.bias"], t) for n, t in enumerate(taps, 1)
        ]
        self.final = tensors["final_conv.weight"].reshape(128).copy()
        self.final_bias = float(tensors["final_conv.bias"][0])
        self.cell = rc.LSTMCell(128, 128)
        self.cell.load_state_dict({key[10:]: value for key, value in tensors.items() if key.startswith("lstm_cell.")})
        # Work space; the rows at the ends of `spectrum` and `first` are the convolutions' zero padding.
        self.sound = np.zeros(CONTEXT + FRAME + CONTEXT, np.float32)
        step = self.sound.itemsize
        self.windows = np.lib.stride_tricks.as_strided(self.sound, (4, WINDOW), (HOP * step, step))
        self.spectrum, self.first = np.zeros((6, BINS), np.float32), np.zeros((5, 128), np.float32)
        self.triples = np.lib.stride_tricks.as_strided(self.spectrum, (4, 3 * BINS), (BINS * step, step))
        self.pairs = np.lib.stride_tricks.as_strided(self.first, (2, 3 * 128), (2 * 128 * step, step))
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self.sound[:] = 0
        self.state = (np.zeros((1, 128), np.float32), np.zeros((1, 128), np.float32))

    def __call__(self, frame: np.ndarray) -> float:
        """frame (512,) float32 in -1..1, the samples after those of the call before."""
        self.sound[:CONTEXT] = self.sound[FRAME : FRAME + CONTEXT]
        self.sound[CONTEXT:-CONTEXT] = frame
        self.sound[-CONTEXT:] = self.sound[-CONTEXT - 2 : -2 * CONTEXT - 2 : -1]  # mirrored at the last sample
        waves = self.fourier(self.windows)
        np.square(waves, out=waves)
        magnitudes = self.spectrum[1:5]
        np.add(waves[:, :BINS], waves[:, BINS:], out=magnitudes)
        np.sqrt(magnitudes, out=magnitudes)
        conv1, conv2, conv3, conv4 = self.encoder
        np.maximum(conv1(self.triples), 0, out=self.first[1:])  # stride 1: 4 columns to 4
        x = np.maximum(conv2(self.pairs), 0).reshape(1, 128)  # stride 2: 4 to 2
        x = np.maximum(conv3(x), 0)  # stride 2: 2 to 1
        x = np.maximum(conv4(x), 0)  # stride 1: 1 to 1
        h, _ = self.state = self.cell.step(x, self.state, out=self.state)
        score = float(np.maximum(h[0], 0).dot(self.final)) + self.final_bias
        return float(1 / (1 + np.exp(-score)))

    def stream(self, sound: np.ndarray) -> np.ndarray:
        """The probabilities of a whole recording (N,), its last frame filled up with silence."""
        frames = np.zeros((-(-len(sound) // FRAME), FRAME), np.float32)
        frames.reshape(-1)[: len(sound)] = sound
        return np.array([self(frame) for frame in frames])


def read_wave(path: str) -> np.ndarray:
    with wave.open(path, "rb") as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (RATE, 1, 2):
            raise SystemExit(f"{path}: expected 16 kHz, mono, 16 bit")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768


def speech_like(seconds: float, seed: int = 0) -> np.ndarray:
    """Sound that moves the network as speech does: voiced syllables (a pulse train of drifting pitch through moving
    formants), hisses and pauses, over a little noise."""
    rng, sound = np.random.default_rng(seed), []
    while sum(map(len, sound)) < seconds * RATE:
        n = int(rng.uniform(0.08, 0.35) * RATE)
        kind = rng.choice(["vowel", "vowel", "vowel", "hiss", "pause"])
        envelope = np.hanning(n) * rng.uniform(0.1, 0.6)
        if kind == "vowel":
            pitch = rng.uniform(90, 250) * np.linspace(1, rng.uniform(0.8, 1.2), n)
            phase = np.cumsum(pitch) / RATE * 2 * np.pi
            formants = [rng.uniform(*span) for span in ((250, 900), (900, 2500), (2400, 3500))]
            harmonics = np.arange(1, 30)[:, None]
            gains = sum(1 / (1 + ((harmonics * pitch - f) / (80 + 0.06 * f)) ** 2) for f in formants)
            sound.append(envelope * (gains * np.sin(harmonics * phase)).sum(0) / 3)
        elif kind == "hiss":
            sound.append(envelope * np.diff(rng.standard_normal(n + 1)) * 0.3)
        else:
            sound.append(np.zeros(n * 2))
    joined = np.concatenate(sound)[: int(seconds * RATE)]
    return (joined + rng.standard_normal(len(joined)) * 1e-3).clip(-1, 1).astype(np.float32)


class Twin:
    """silero_vad.onnx under ONNX Runtime on one thread, with the same calls; `tensors` replace its own weights."""

    def __init__(self, tensors: dict[str, np.ndarray] | None = None) -> None:
        import onnx
        import onnxruntime

        model = onnx.load(str(folder() / ONNX))
        held = dict(self._held(model))
        for key, value in (tensors or {}).items():
            held[key].CopyFrom(onnx.numpy_helper.from_array(np.array(value), held[key].name))
        self.tensors = {key: onnx.numpy_helper.to_array(tensor) for key, tensor in held.items()}
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
        self.rate = np.array(RATE, np.int64)
        self.reset()

    @staticmethod
    def _held(model: Any) -> Iterator[tuple[str, Any]]:
        """The weights for 16 kHz, which are constants of the first branch of its If, by the safetensors' keys."""
        choice = next(node for node in model.graph.node if node.op_type == "If")
        branch = next(a.g for a in choice.attribute if a.name == "then_branch")
        constants = {node.output[0]: node.attribute[0].t for node in branch.node if node.op_type == "Constant"}
        for key, ending in NAMES.items():
            yield key, next(tensor for name, tensor in constants.items() if name.endswith(ending))

    def reset(self) -> None:
        self.state = np.zeros((2, 1, 128), np.float32)
        self.sound = np.zeros((1, CONTEXT + FRAME), np.float32)

    def __call__(self, frame: np.ndarray) -> float:
        self.sound[:, :CONTEXT] = self.sound[:, FRAME:]
        self.sound[:, CONTEXT:] = frame
        fed = {"input": self.sound, "state": self.state, "sr": self.rate}
        score, self.state = self.session.run(None, fed)
        return float(score[0, 0])

    stream = SileroVAD.stream


def check(seconds: float) -> int:
    """Both pairs of twins over the same sound, in turns; the best round of each kind counts."""
    rc.set_num_threads(1)
    sound, apart, best = speech_like(seconds), 0.0, [np.inf, np.inf]
    published = Twin()
    for what, ours, twin in (
        (f"the weights of {SAFETENSORS}", SileroVAD(), Twin(weights.read(folder() / SAFETENSORS))),
        (f"the weights of {ONNX}", SileroVAD(published.tensors), published),
    ):
        found = [np.zeros(0)] * 2
        for _ in range(3):
            for side, model in enumerate((ours, twin)):
                model.reset()
                start = time.perf_counter()
                found[side] = model.stream(sound)
                best[side] = min(best[side], (time.perf_counter() - start) / len(found[side]) * 1e6)
        difference = float(np.abs(found[0] - found[1]).max())
        print(f"{what}: {len(found[0])} frames, {(found[1] > 0.5).mean():.0%} speech, within {difference:.1e}")
        apart = max(apart, difference)
    ok = apart <= 1e-4 and best[0] < best[1]
    print(
        f"{'ok' if ok else 'FAILED'}: probabilities within {apart:.1e} of the ONNX twin (at most 1e-4); "
        f"{best[0]:.1f} us a frame, ONNX Runtime {best[1]:.1f} us ({best[1] / best[0]:.2f} times as fast)"
    )
    return 0 if ok else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="Probability of speech for each 32 ms, by the Silero VAD model.")
    parser.add_argument("file", nargs="?", help="a wave file: 16 kHz, mono, 16 bit")
    parser.add_argument("--check", action="store_true", help="compare with the ONNX twin under ONNX Runtime")
    parser.add_argument("--seconds", type=float, default=60.0, help="how much sound --check uses (default 60)")
    options = parser.parse_args()
    if options.check:
        return check(options.seconds)
    if options.file is None:
        parser.error("a wave file, or --check")
    for number, probability in enumerate(SileroVAD().stream(read_wave(options.file))):
        print(f"{number * FRAME / RATE:8.3f} s  {probability:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
