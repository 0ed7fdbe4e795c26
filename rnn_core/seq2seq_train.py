"""Training of sequence-to-sequence models: batches of like lengths, annealing to a limit, early stopping, resuming."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rnn_core import checkpoint, checks
from rnn_core.clipping import clip_grad_norm
from rnn_core.layers import Dropout
from rnn_core.optim import Adam
from rnn_core.recurrent import Recurrent
from rnn_core.run import Interrupts, Log, Progress, RunFiles, interrupts
from rnn_core.seq2seq import Seq2Seq, offsets, ragged_tokens
from rnn_core.sequences import Ragged

Order = NDArray[np.int64]
COLUMNS = ("step", "epoch", "seconds", "lr", "training_loss", "validation_loss")
POOL = 50  # batches that are sorted by length together


# ---------------------------------------------------------------------------------------------------------- batches


def take(sequences: Ragged, index: Order) -> Ragged:
    """The sequences of these numbers, in this order."""
    begins, lengths = offsets(sequences.lengths)[index], sequences.lengths[index]
    shifts = np.repeat(begins - offsets(lengths)[:-1], lengths)
    return Ragged(sequences.values[np.arange(len(shifts)) + shifts], lengths)


def bucketed(source_lengths: Order, target_lengths: Order, batch_size: int, rng: np.random.Generator) -> list[Order]:
    """One epoch of batches, in random order, each of sentences of like lengths.

    Sentences are shuffled, sorted by length within pools of 50 batches, and cut: padding is never computed, but a batch
    of one length keeps the recurrent step's rows many until its end.
    """
    order = rng.permutation(len(source_lengths))
    batches: list[Order] = []
    for begin in range(0, len(order), POOL * batch_size):
        pool = order[begin : begin + POOL * batch_size]
        pool = pool[np.lexsort((source_lengths[pool], target_lengths[pool]))]
        batches += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


@dataclass
class Pairs:
    """Parallel sentences as token numbers."""

    sources: Ragged
    targets: Ragged

    @classmethod
    def of(cls, sources: Any, targets: Any) -> Pairs:
        """From lists of token sequences (or Ragged ones); sources of one token at least."""
        limit = np.iinfo(np.int64).max
        pairs = cls(ragged_tokens("sources", sources, None, limit, 1), ragged_tokens("targets", targets, None, limit))
        if len(pairs.sources) != len(pairs.targets):
            raise ValueError(f"targets: expected {len(pairs.sources)} as the sources, got {len(pairs.targets)}")
        return pairs

    def __len__(self) -> int:
        return len(self.sources)

    def pick(self, index: Order) -> tuple[Ragged, Ragged]:
        return take(self.sources, index), take(self.targets, index)


# ---------------------------------------------------------------------------------------------------------- options


@dataclass
class TrainOptions:
    """How to train. One of `epochs` and `minutes` ends it; the learning rate falls to zero by then (half a cosine).

    sampling: the greatest chance that an input token is the model's own prediction (Bengio et al. 2015), reached
    linearly by the end. patience: epochs without a better validation loss before it stops. average: decay of a running
    mean of the weights, which is what is validated and kept (0: none).
    """

    epochs: float | None = None
    minutes: float | None = None
    batch_size: int = 128
    lr: float = 1e-3
    warmup: int = 100
    label_smoothing: float = 0.0
    sampling: float = 0.0
    clip: float = 1.0
    patience: int | None = None
    average: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.minutes is None):
            raise ValueError(f"expected either epochs or minutes, got epochs={self.epochs} and minutes={self.minutes}")
        for name in ("epochs", "minutes", "lr", "clip"):
            value = getattr(self, name)
            if value is not None and checks.real(name, value) <= 0:
                raise ValueError(f"{name}: expected a number above 0, got {value}")
        for name in ("label_smoothing", "sampling", "average"):
            checks.fraction(name, getattr(self, name))
        checks.count("batch_size", self.batch_size)


@dataclass
class _State:
    """Where a run stands; what a checkpoint carries besides the weights."""

    step: int = 0
    epoch: int = 0
    position: int = 0  # batches done of this epoch
    seconds: float = 0.0
    best: float = math.inf
    best_epoch: int = 0
    losses: list[float] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------------- trainer


class Trainer:
    """Trains `model` on `pairs`; with `valid` (Pairs) it validates after every epoch and keeps the best weights.

    files: where checkpoints, the log and the loss plot go; None keeps all in memory. config: what a checkpoint needs
    besides the model's own sizes (vocabularies).
    """

    def __init__(self, model: Seq2Seq, pairs: Pairs, options: TrainOptions, valid: Pairs | None = None, *,
                 files: RunFiles | None = None, config: dict[str, Any] | None = None, quiet: bool = False) -> None:
        self.model, self.pairs, self.options, self.valid = model, pairs, options, valid
        if not len(pairs):
            raise ValueError("pairs: expected at least one to train on")
        self.files, self.config, self.quiet = files, config or {}, quiet
        self.optimiser = Adam(model.params, lr=options.lr)
        self.state = _State()
        self.log: Log | None = None
        self.mean: dict[str, Any] = {k: v.copy() for k, v in model.params.items()} if options.average else {}
        self.best: dict[str, Any] | None = None
        self.stopped = False

    def run(self, *, resume: bool = False) -> _State:
        """Train to the end, an early stop or Ctrl-C (which saves, so that resume=True goes on from there)."""
        if resume:
            self._resume()
        if self.files is not None:
            self.log = Log(self.files.beside(".csv"), COLUMNS, upto=self.state.step if resume else None)
        progress = None if self.quiet else Progress(1.0, self._progress())
        self._began = time.monotonic() - self.state.seconds
        manager: AbstractContextManager[Interrupts] = interrupts()
        try:
            with manager as stop:
                self._epochs(stop, progress)
        finally:
            if progress is not None:
                progress.close()
        self._plot()
        self.stopped = bool(stop)
        if stop:
            self._save_last()
        elif self.best is not None:
            self.model.load_state_dict(self.best)
        elif self.mean:
            self.model.load_state_dict(self.model.spread(self.mean))
        if not stop and self.best is None:
            self.best = self.model.state_dict()
            self._save_best()
        return self.state

    # ---- the loop ------------------------------------------------------------------------------------------

    def _epochs(self, stop: Interrupts, progress: Progress | None) -> None:
        state = self.state
        while not stop and self._progress() < 1.0:
            for batch in self._rest_of_epoch():
                self._step(batch)
                if progress is not None and progress.due():
                    progress.show(self._progress(), f"epoch {state.epoch + 1}  loss {self._recent():.3f}")
                if stop or self._progress() >= 1.0:
                    break
            else:
                state.epoch, state.position = state.epoch + 1, 0
            if not stop and self._end_of_epoch(progress):
                break

    def _rest_of_epoch(self) -> Iterator[Order]:
        rng = np.random.default_rng([self.options.seed, self.state.epoch])
        lengths = self.pairs.sources.lengths, self.pairs.targets.lengths
        self._batches = bucketed(*lengths, self.options.batch_size, rng)
        yield from self._batches[self.state.position :]

    def _progress(self) -> float:
        """How much of the run is done, 0 to 1."""
        state, options = self.state, self.options
        if options.minutes is not None:
            return min(1.0, state.seconds / (60 * options.minutes))
        count = max(1, -(-len(self.pairs) // options.batch_size))
        return min(1.0, (state.epoch + state.position / count) / (options.epochs or 1.0))

    def _lr(self) -> float:
        warm = min(1.0, (self.state.step + 1) / max(1, self.options.warmup))
        return self.options.lr * warm * max(1e-3, 0.5 * (1 + math.cos(math.pi * self._progress())))

    def _step(self, batch: Order) -> None:
        model, options, state = self.model, self.options, self.state
        sources, targets = self.pairs.pick(batch)
        inputs = None
        if options.sampling and self._progress() > 0:
            chance = options.sampling * self._progress()
            inputs = model.sampled_inputs(sources, targets, chance, options.seed + state.step)
        model.zero_grad()
        loss = model.learn(sources, targets, label_smoothing=options.label_smoothing, inputs=inputs)
        clip_grad_norm(model.grads, options.clip)
        self.optimiser.groups[0]["lr"] = self._lr()
        self.optimiser.step(model.grads)
        state.step, state.position, state.seconds = state.step + 1, state.position + 1, time.monotonic() - self._began
        state.losses = [*state.losses[-199:], loss]
        self._average()

    def _average(self) -> None:
        """The running mean moves towards the weights; early on it forgets faster."""
        if self.mean and self.state.step % 4 == 0:
            keep = min(self.options.average, (1 + self.state.step / 4) / (10 + self.state.step / 4))
            for key, value in self.model.params.items():
                self.mean[key] += (1 - keep) * (value - self.mean[key])

    def _recent(self) -> float:
        return float(np.mean(self.state.losses)) if self.state.losses else math.nan

    def _end_of_epoch(self, progress: Progress | None) -> bool:
        """Validate, log and save; whether training should stop early."""
        state, score = self.state, math.nan
        done = self._progress() >= 1.0
        if self.valid is not None and len(self.valid):
            score = self.validate()
            if score < state.best:
                state.best, state.best_epoch = score, state.epoch
                best = self.model.spread(self.mean) if self.mean else self.model.state_dict()
                self.best = {key: value.copy() for key, value in best.items()}
                self._save_best()
        if self.log is not None:
            self.log.add(step=state.step, epoch=state.epoch, seconds=state.seconds, lr=self._lr(),
                         training_loss=self._recent(), validation_loss=score)
        self._save_last()
        if progress is not None:
            progress.say(f"epoch {state.epoch}  step {state.step}  training loss {self._recent():.4f}"
                         f"  validation loss {score:.4f}  {state.seconds:.0f} s", 0.0 if done else 5.0)
        patience = self.options.patience
        return patience is not None and state.epoch - state.best_epoch >= patience

    def validate(self) -> float:
        """Mean -log p a token over `valid`, with the averaged weights if there are any."""
        assert self.valid is not None
        trained = self.model.state_dict() if self.mean else None
        if trained is not None:
            self.model.load_state_dict(self.model.spread(self.mean))
        total, count = 0.0, 0
        order = np.argsort(self.valid.targets.lengths, kind="stable")
        for begin in range(0, len(order), 256):
            loss, tokens = self.model.loss(*self.valid.pick(order[begin : begin + 256]))
            total, count = total + loss, count + tokens
        if trained is not None:
            self.model.load_state_dict(trained)
        return total / max(1, count)

    # ---- files ---------------------------------------------------------------------------------------------

    def _plot(self) -> None:
        from rnn_core import plots

        if self.files is not None and self.log is not None and plots.available():
            plots.token_losses(self.files.beside(".loss.png"), self.log.rows)

    def _save_best(self) -> None:
        if self.files is not None and self.best is not None:
            checkpoint.save(self.files.best, _Weights(self.best), step=self.state.step, config=self._config())

    def _save_last(self) -> None:
        if self.files is not None:
            extra = {f"mean:{key}": value for key, value in self.mean.items()}
            checkpoint.save(self.files.last, self.model, self.optimiser, step=self.state.step, config=self._config(),
                            extra=extra)

    def _config(self) -> dict[str, Any]:
        return {**self.config, "seq2seq": self.model.config(), "training": asdict(self.state)}

    def _resume(self) -> None:
        if self.files is None:
            raise ValueError("resume: expected files, got None")
        saved = checkpoint.load(self.files.last)
        saved.restore(self.model, self.optimiser)
        self.state = _State(**saved.config["training"])
        self.mean = {key[5:]: value.copy() for key, value in saved.extra.items() if key.startswith("mean:")}
        for _, module in self.model._tree():  # dropout goes on with the masks that would have come next
            if isinstance(module, (Dropout, Recurrent)):
                module.calls = self.state.step
        if self.files.best.exists():
            self.best = checkpoint.load(self.files.best).model


class _Weights:
    """Weights by key, saved as a module is."""

    def __init__(self, weights: dict[str, Any]) -> None:
        self._weights = weights

    def state_dict(self) -> dict[str, Any]:
        return self._weights


def train(model: Seq2Seq, pairs: Pairs, valid: Pairs | None = None, *, resume: bool = False,
          files: RunFiles | None = None, config: dict[str, Any] | None = None, quiet: bool = False,
          **options: Any) -> _State:
    """Train `model` in place (see Trainer and TrainOptions); where the run stands at its end."""
    trainer = Trainer(model, pairs, TrainOptions(**options), valid, files=files, config=config, quiet=quiet)
    return trainer.run(resume=resume)


