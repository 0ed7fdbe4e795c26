"""From measured seconds to ratios, shares of the limit, means, and the lines of what must be shown."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.limits import Limits, plural

from .rows import Row, geometric_mean

NOISE = 0.97  # a row counts as no slower than a peer from here on


@dataclass
class Score:
    """One row at one thread count. best: seconds of each engine; ratio: the fastest peer's over rnn_core's."""

    row: Row
    threads: int
    best: dict[str, float]
    medians: dict[str, float]
    packed: float | None  # torch's best with packed sequences
    flops: float
    share: float  # of the limit

    @property
    def ours(self) -> float:
        return self.best["rnn_core"]

    @property
    def rate(self) -> float:
        """Floating-point operations a second."""
        return self.flops / self.ours

    @property
    def peer(self) -> str | None:
        """The fastest peer."""
        peers = {name: seconds for name, seconds in self.best.items() if name != "rnn_core"}
        return min(peers, key=peers.__getitem__) if peers else None

    @property
    def ratio(self) -> float | None:
        return self.best[self.peer] / self.ours if self.peer else None

    def against(self, name: str) -> float | None:
        return self.best[name] / self.ours if name in self.best else None


def score(result: dict, limits: Limits) -> Score | None:
    """None where rnn_core itself is missing."""
    engines = result["engines"]
    if "rnn_core" not in engines:
        return None
    row = Row(**result["row"])
    best = {name: min(f["best"] for f in families.values()) for name, families in engines.items()}
    medians = {name: min(f["median"] for f in families.values()) for name, families in engines.items()}
    packed = engines.get("torch", {}).get("packed", {}).get("best")
    tokens = result.get("tokens")
    share = row.limit(limits, tokens) / best["rnn_core"]
    return Score(row, result["threads"], best, medians, packed, row.flops(tokens), share)


@dataclass
class Bar:
    """One line of what must be shown: value against bound."""

    text: str
    value: float
    bound: float
    at_most: bool = False
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def __str__(self) -> str:
        sign = "<=" if self.at_most else ">="
        verdict = "pass" if self.passed else "FAIL"
        return f"{verdict}  {self.text}: {self.value:.3f} ({sign} {self.bound}) {self.detail}".rstrip()


def _worst(text: str, bound: float, pairs) -> list[Bar]:
    """The smallest value of (name, value) pairs; no line for none."""
    pairs = [pair for pair in pairs if pair[1] is not None]
    if not pairs:
        return []
    name, value = min(pairs, key=lambda pair: pair[1])
    short = [n for n, v in pairs if v < bound]
    return [Bar(text, value, bound, detail=f"at {name}; {len(short)} of {len(pairs)} rows below")]


def _mean(text: str, bound: float, values) -> list[Bar]:
    values = [value for value in values if value is not None]
    return [Bar(text, geometric_mean(values), bound)] if values else []


def _ratios(scores) -> list[tuple[str, float | None]]:
    return [(s.row.name, s.ratio) for s in scores]


def bars(scores: list[Score]) -> list[Bar]:
    """Every line that these rows can answer, thread count by thread count."""
    found = []
    for threads in sorted({s.threads for s in scores}):
        here = [s for s in scores if s.threads == threads]
        for kinds, lines in (
            (("layer",), _inference),
            (("step",), _steps),
            (("train",), _dense),
            (("ragged",), _ragged),
            (("charlm",), _charlm),
        ):
            chosen = [s for s in here if s.row.kind in kinds]
            if chosen:
                for bar in lines(chosen, threads):
                    bar.text = f"{plural(threads)}, {bar.text}"
                    found.append(bar)
    return found


def _inference(scores, threads) -> list[Bar]:
    many = [s for s in scores if s.row.T > 1]
    found = _worst("inference: slowest row against the fastest peer", NOISE, _ratios(scores))
    if threads <= 2:
        every, longer = {1: (1.2, 1.1), 2: (1.5, 1.35)}[threads]
        found += _mean("inference: mean ratio to the fastest peer", every, [s.ratio for s in scores])
        found += _mean("inference: the same, T > 1", longer, [s.ratio for s in many])
    found += _mean("inference: mean ratio to torch", 2.5, [s.against("torch") for s in scores])
    if threads == 1:
        found += _mean("inference: mean share of the limit, T > 1", 0.88, [s.share for s in many])
        beyond = [(s.row.name, s.share) for s in many if s.row.recurrent_bytes() > 32 << 10]
        found += _worst("inference: least share of the limit, R > 32 KiB", 0.75, beyond)
    return found


def _steps(scores, threads) -> list[Bar]:
    found = _worst("single steps: slowest against the fastest peer", NOISE, _ratios(scores))
    for hidden, bound in {64: 4.0, 256: 1.5, 512: 1.2}.items() if threads == 1 else ():
        pairs = [(s.row.name, s.against("onnxruntime")) for s in scores if s.row.H == hidden]
        found += _worst(f"single steps: ratio to ONNX Runtime, H = {hidden}", bound, pairs)
    return found


def _unless_peak(scores, bound: float, share: float) -> list[tuple[str, float]]:
    """Ratios, where a row that reaches `share` of the peak counts as having reached the bound."""
    return [(s.row.name, max(s.ratio, bound) if s.share >= share else s.ratio) for s in scores if s.ratio]


def _dense(scores, threads) -> list[Bar]:
    found = _worst("training: slowest row against the fastest peer", NOISE, _ratios(scores))
    others = [s for s in scores if s.row.cell != "LSTM"]
    wide = [(s.row.name, s.share) for s in scores if s.row.H >= 128]
    if threads <= 2:
        bound, share = {1: (1.35, 0.85), 2: (1.8, 0.80)}[threads]
        text = f"training: least ratio of GRU and RNN (or {share} of the peak)"
        found += _worst(text, bound, _unless_peak(others, bound, share))
        found += _mean("training: mean ratio to the fastest peer", {1: 1.4, 2: 2.0}[threads], [s.ratio for s in scores])
    if threads == 1:
        found += _worst("training: least share of the FMA peak, H >= 128 (an aim)", 0.87, wide)
    return found


def _ragged(scores, threads) -> list[Bar]:
    uniform = [s for s in scores if s.row.shortest > 0]
    text = "ragged: least ratio to the fastest peer's best way (or 0.80 of the peak)"
    found = _worst(text, 1.4, _unless_peak(uniform, 1.4, 0.80))
    if threads <= 2:
        packed = [s.packed / s.ours for s in uniform if s.packed]
        found += _mean("ragged: mean ratio to packed sequences", {1: 2.3, 2: 3.0}[threads], packed)
    return found


def _charlm(scores, threads) -> list[Bar]:
    bounds = {"LSTM": 1.1, "GRU": 1.4}
    return [
        Bar(f"character model's step, {s.row.cell}: ratio to torch", s.against("torch"), bounds[s.row.cell])
        for s in scores
        if s.row.cell in bounds and s.against("torch")
    ]
