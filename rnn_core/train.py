"""Training a character language model by truncated BPTT, with the state carried over from piece to piece.

A run is a Trainer: everything that decides its numbers (weights, optimiser, random state, place in the text,
carried state) is in its last checkpoint, so that a resumed run gives the same numbers as one that was never
stopped, bit for bit. Only a time limit, which follows the clock, is outside that promise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_core import checkpoint, checks, losses, optim
from rnn_core.charlm import CELLS, CharLM
from rnn_core.clipping import clip_grad_norm
from rnn_core.run import Interrupts, Log, Progress, RunFiles, interrupts
from rnn_core.text import Streams, fingerprint, split, vocabulary

OPTIMISERS = {"adam": optim.Adam, "adamw": optim.AdamW, "rmsprop": optim.RMSprop, "sgd": optim.SGD}
COLUMNS = (
    "step", "epoch", "characters", "seconds", "learning_rate", "training_loss", "gradient_norm", "validation_loss",
)  # fmt: skip
LOG_STEPS = 25  # between rows of the log
LINE_SECONDS = 1.0  # between lines about validations, which may come many times a second
LONG_EPOCH = 2000  # steps; longer epochs are validated up to four times
SAVE_SECONDS = 60.0  # how much work a power cut may cost
BITS = 1 / math.log(2)  # of a nat


class Diverged(ArithmeticError):
    """The loss or a gradient is no longer a finite number."""


@dataclass(frozen=True)
class Options:
    """What decides the numbers of a run. ValueError or TypeError names the one that is out of its range."""

    cell: str = "lstm"
    layers: int = 1
    hidden: int = 256
    embedding: int = 64
    dropout: float = 0.0
    seq_length: int = 64
    batch: int = 16
    optimiser: str = "adamw"
    lr: float = 1e-2
    warmup: int = 100  # steps over which the learning rate rises
    weight_decay: float = 0.1  # adamw only
    clip: float = 1.0  # largest norm of all gradients together; 0: none
    seed: int = 0
    validation: float = 0.05  # the last part of the text is held out
    epochs: int | None = None
    minutes: float | None = None  # the learning rate falls so as to end then

    def __post_init__(self) -> None:
        for name, choices in (("cell", CELLS), ("optimiser", OPTIMISERS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("layers", "hidden", "embedding", "seq_length", "batch"):
            checks.count(name, getattr(self, name))
        for name in ("warmup", "seed"):
            checks.count(name, getattr(self, name), 0)
        for name in ("dropout", "validation"):
            if not 0 <= checks.real(name, getattr(self, name)) < 1:
                raise ValueError(f"{name}: expected at least 0 and below 1, got {getattr(self, name)}")
        for name in ("weight_decay", "clip"):
            if checks.real(name, getattr(self, name)) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if self.epochs is not None:
            checks.count("epochs", self.epochs)
        for name in ("lr", "minutes"):
            value = getattr(self, name)
            if value is not None and checks.real(name, value) <= 0:
                raise ValueError(f"{name}: expected more than 0, got {value}")


@dataclass
class Position:
    """How far a run is. Saved with every checkpoint of it."""

    step: int = 0
    offset: int = 0  # where this epoch's streams start
    seconds: float = 0.0  # of the time limit, over all sittings
    step_seconds: float = 0.0  # of it, in training steps
    loss_sum: float = 0.0  # since the last row of the log
    loss_count: int = 0
    norm: float = 0.0
    logged: int = 0  # the step of the last row
    validated: int = 0  # the step of the last validation
    validation: float = math.nan
    best: float = math.inf


@dataclass
class Result:
    """How a run ended. losses are in nats a character."""

    validation: float
    best: float
    finished: bool
    position: Position
    rows: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """One run over one text. `train()` goes on from wherever it is until the end or an interrupt."""

    def __init__(self, text: str, options: Options, files: RunFiles, source: Mapping[str, Any] | None = None) -> None:
        """source: kept in the checkpoints for whoever resumes the run (the paths of the text, say)."""
        if options.epochs is None and options.minutes is None:
            raise ValueError("expected a number of epochs or of minutes, got neither")
        self.options, self.files, self.source = options, files, dict(source or {})
        self.model = new_model(vocabulary(text), options)
        self.text_id = fingerprint(text)
        training, self.held_out = split(_tokens(self.model, text), options.validation)
        if len(self.held_out) < 2:
            raise ValueError(f"text: expected at least 2 characters to hold out, got {len(self.held_out)}")
        self.lead = training[-options.seq_length :]
        self.streams = Streams(training, options.batch, options.seq_length)
        self.optimiser = _new_optimiser(self.model, options)
        self.rng = np.random.default_rng([options.seed, 1])
        self.at = Position()
        self.state: Any = None  # carried over; None at the start of an epoch
        self.log: Log | None = None
        self._saved = time.monotonic()

    @property
    def epoch(self) -> float:
        """Epochs read so far."""
        return self.at.step / self.streams.chunks

    @property
    def progress(self) -> float:
        """The part of the run that is done, 0 to 1, by steps or by the clock, whichever is further."""
        options, parts = self.options, [0.0]
        if options.epochs is not None:
            parts.append(self.at.step / (options.epochs * self.streams.chunks))
        if options.minutes is not None:
            parts.append(self.at.seconds / (60 * options.minutes))
        return min(max(parts), 1.0)

    # ---- the loop -------------------------------------------------------------------------------------------

    def train(self) -> Result:
        """Train to the end; after an interrupt `finished` is False and the last checkpoint is where it stopped."""
        self.log = self.log or Log(self.files.beside(".csv"), COLUMNS)
        shown = Progress(1.0, self.progress)
        try:
            with interrupts() as stop:
                self._loop(stop, shown)
                self.save()
        finally:
            shown.close()
        done = self.progress >= 1 and not stop
        return Result(self.at.validation, self.at.best, done, self.at, self.log.rows)

    def _loop(self, stop: Interrupts, shown: Progress) -> None:
        at, clock = self.at, time.monotonic()
        while not stop:
            if self._validation_due():
                if not self._validate(stop):
                    return
                shown.say(self._validation_line(), unless_after=0.0 if self.progress >= 1 else LINE_SECONDS)
            self._log_row()
            if self.progress >= 1 or stop:
                return
            self._step()
            now = time.monotonic()
            at.seconds += now - clock
            clock = now
            if shown.due():
                shown.show(self.progress, self._figures())
            if now - self._saved > SAVE_SECONDS:
                self.save()

    def _step(self) -> None:
        at, options, began = self.at, self.options, time.monotonic()
        k = at.step % self.streams.chunks
        if k == 0:
            at.offset, self.state = int(self.rng.integers(self.streams.offsets)), None
        x, y = self.streams.chunk(k, at.offset)
        logits, self.state, tape = self.model.forward(x, self.state)
        loss, _ = losses.cross_entropy(logits, y, out=logits)  # its gradient takes the place of the logits
        self.model.zero_grad()
        self.model.backward(tape, logits)
        grads = self.model.grads
        at.norm = clip_grad_norm(grads, options.clip or math.inf)
        self.optimiser.lr = self.learning_rate()
        try:
            self.optimiser.step(grads)
        except ValueError as fault:  # it names the gradient that is not finite
            raise Diverged(f"step {at.step + 1}, loss {loss}: {fault}; a lower learning rate may help") from None
        at.step += 1
        at.loss_sum += loss
        at.loss_count += 1
        at.step_seconds += time.monotonic() - began

    def learning_rate(self) -> float:
        """A linear rise over the first steps, then half a cosine down to nothing at the end of the run.

        The rise takes at most a tenth of the run, so that a short one learns something too.
        """
        rise = min(1.0, max((self.at.step + 1) / (self.options.warmup + 1), 10 * self.progress))
        return self.options.lr * rise * 0.5 * (1 + math.cos(math.pi * self.progress))

    # ---- validation and the log -----------------------------------------------------------------------------

    def _validation_due(self) -> bool:
        at, chunks = self.at, self.streams.chunks
        if at.step == at.validated:
            return False
        interval = math.ceil(chunks / min(4, math.ceil(chunks / LONG_EPOCH)))
        return self.progress >= 1 or at.step % chunks % interval == 0

    def _validate(self, stop: Interrupts) -> bool:
        found = evaluate(self.model, self.held_out, self.lead, stop)
        if found is None:
            return False
        at = self.at
        at.validation, at.validated = found, at.step
        if found < at.best:
            at.best = found
            self.model.save(self.files.best, step=at.step)
        self.save()
        return True

    def _log_row(self) -> None:
        at = self.at
        fresh = at.validated == at.step
        if at.step == at.logged or not (fresh or at.step % LOG_STEPS == 0):
            return
        assert self.log is not None
        self.log.add(
            step=at.step, epoch=self.epoch, characters=self.characters, seconds=at.seconds,
            learning_rate=self.optimiser.lr, training_loss=at.loss_sum / at.loss_count, gradient_norm=at.norm,
            validation_loss=at.validation if fresh else None,
        )  # fmt: skip
        at.logged, at.loss_sum, at.loss_count = at.step, 0.0, 0

    @property
    def characters(self) -> int:
        """Characters trained on so far."""
        return self.at.step * self.options.batch * self.options.seq_length

    # ---- checkpoints ----------------------------------------------------------------------------------------

    def save(self) -> Path:
        """Write the last checkpoint, from which `resume` goes on."""
        config = {
            "model": self.model.config,
            "options": asdict(self.options),
            "position": asdict(self.at),
            "calls": self.model.calls,
            "text": self.text_id,
            "source": self.source,
        }
        carried = {f"state.{i}": part for i, part in enumerate(_parts(self.state))}
        self._saved = time.monotonic()
        return checkpoint.save(
            self.files.last, self.model, self.optimiser, step=self.at.step, rng=self.rng, config=config, extra=carried
        )

    @classmethod
    def resume(
        cls, found: checkpoint.Checkpoint, text: str, files: RunFiles, changes: Mapping[str, Any] | None = None
    ) -> Trainer:
        """The run in a last checkpoint, where it stopped. changes: new `epochs` or `minutes`.

        ValueError where the text is another one or an option cannot change; CheckpointError where the file is
        no last checkpoint of such a run.
        """
        try:
            config = found.config
            options, at = Options(**config["options"]), Position(**config["position"])
            text_id, source, calls = config["text"], config["source"], dict(config["calls"])
        except (KeyError, TypeError) as fault:
            raise checkpoint.CheckpointError(f"{files.last}: expected the last checkpoint of a run ({fault})") from None
        if fingerprint(text) != text_id:
            raise ValueError(f"text: expected the text that {files.last} was trained on, got another one")
        run = cls(text, _changed(options, changes or {}), files, source)
        found.restore(run.model, run.optimiser, run.rng)
        run.model.calls = calls
        run.at = at
        run.state = _joined([found.extra[key] for key in sorted(found.extra)])
        run.log = Log(files.beside(".csv"), COLUMNS, upto=at.logged)
        return run

    # ---- words for the user ---------------------------------------------------------------------------------

    def _figures(self) -> str:
        at = self.at
        loss = at.loss_sum / at.loss_count if at.loss_count else math.nan
        speed = self.characters / max(at.step_seconds, 1e-9) / 1000
        return f"loss {loss:.3f} nats {loss * BITS:.3f} bits/char, {speed:.0f}k chars/s, grad {at.norm:.2f}"

    def _validation_line(self) -> str:
        found = self.at.validation
        return (
            f"epoch {self.epoch:.2f}  step {self.at.step}  "
            f"validation {found:.4f} nats, {found * BITS:.4f} bits/char"
        )


def evaluate(
    model: CharLM, tokens: NDArray[np.integer], lead: NDArray[np.integer], stop: Any = False
) -> float | None:
    """The mean loss of `tokens` in nats a character, read on from `lead`, the text before; None once `stop` is true.

    The text is read as up to 64 streams side by side. Each is led in by the len(lead) characters before it, which
    do not count, so that the result is that of reading it in one go but for a hundredth of a percent or so.
    """
    text = np.concatenate([lead, tokens])
    start = max(len(lead), 1) - 1  # steps of a stream that do not count
    batch = max(1, min(64, len(tokens) // 1024))
    length = (len(text) - 1 - start) // batch  # steps that do
    streams = length * np.arange(batch)
    state, total = None, 0.0
    lead_in = [0] if start else []
    for begin, end in pairwise([*lead_in, *range(start, start + length, 256), start + length]):
        if stop:
            return None
        here = np.arange(begin, end)[:, None] + streams
        logits, state = model(text[here], state)
        if begin >= start:
            total += (end - begin) * losses.cross_entropy(logits, text[here + 1], need_dlogits=False)[0]
    return total / length


# ---- helpers ------------------------------------------------------------------------------------------------


def _tokens(model: CharLM, text: str) -> NDArray[np.integer]:
    """`text` in as few bytes as hold a token: a large corpus is read piece by piece and stays in memory."""
    small: Any = np.uint8 if len(model.vocabulary) <= 256 else np.int32
    found, piece = np.empty(len(text), small), 1 << 20
    for at in range(0, len(text), piece):
        found[at : at + piece] = model.encode(text[at : at + piece])
    return found


def new_model(letters: str, options: Options) -> CharLM:
    """A model of the options' sizes, its first weights by their seed; `letters`: its distinct characters, of which the
    i-th is token i. ValueError where one comes twice."""
    return CharLM(
        letters,
        cell=options.cell,
        layers=options.layers,
        hidden=options.hidden,
        embedding=options.embedding,
        dropout=options.dropout,
        seed=options.seed,
    )


def _new_optimiser(model: CharLM, options: Options) -> Any:
    """The optimiser; weight decay spares what is no matrix of connections (biases, embeddings)."""
    params = model.params
    if options.optimiser == "sgd":
        return optim.SGD(params, lr=options.lr, momentum=0.9)
    if options.optimiser == "rmsprop":
        return optim.RMSprop(params, lr=options.lr)
    if options.optimiser == "adam":
        return optim.Adam(params, lr=options.lr, betas=(0.9, 0.99))
    decayed = {key for key, array in params.items() if array.ndim > 1 and not key.startswith("embedding.")}
    groups = [
        {"params": {key: array for key, array in params.items() if (key in decayed) == wanted}, "weight_decay": decay}
        for wanted, decay in ((True, options.weight_decay), (False, 0.0))
    ]
    return optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.99))


def _changed(options: Options, changes: Mapping[str, Any]) -> Options:
    """`options` with a new end; a different value of anything else would be another run."""
    for name, value in changes.items():
        if name not in ("epochs", "minutes") and value != getattr(options, name):
            raise ValueError(
                f"{name}: expected {getattr(options, name)}, as the run began, got {value}; "
                "a resumed run can change epochs and minutes only"
            )
    return replace(options, **changes)


def _parts(state: Any) -> tuple[NDArray[Any], ...]:
    """A carried state as arrays: none, h, or h and c."""
    if state is None:
        return ()
    return tuple(state) if isinstance(state, tuple) else (state,)


def _joined(parts: list[NDArray[Any]]) -> Any:
    """The inverse of _parts."""
    if not parts:
        return None
    return tuple(parts) if len(parts) > 1 else parts[0]
