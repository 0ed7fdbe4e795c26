"""Seq2Seq written with torch modules: the same weights, padded batches with masks, and the usual batched beam loop."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

RNNS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class TorchSeq2Seq(nn.Module):
    """Takes the place of an rnn_core.Seq2Seq without dropout, for one that `load` copies."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        encoder, decoder = model.encoder.arguments, model.decoder.arguments
        self.kind, self.feeds, self.tokens = decoder["attention"], decoder["input_feeding"], model.decoder.tokens
        self.hidden, self.layers, self.copies = decoder["hidden_size"], decoder["num_layers"], model.copies
        self.lstm, self.size = decoder["cell"] == "lstm", model.decoder.attention_size
        self.encoder = nn.Module()
        self.encoder.embedding = nn.Embedding(encoder["num_embeddings"], encoder["embedding_dim"])
        self.encoder.rnn = RNNS[encoder["cell"]](encoder["embedding_dim"], encoder["hidden_size"],
                                                 encoder["num_layers"], bidirectional=encoder["bidirectional"],
                                                 batch_first=True)
        width = model.encoder.output_size
        self.decoder = nn.Module()
        self.decoder.embedding = nn.Embedding(decoder["num_embeddings"], decoder["embedding_dim"])
        self.decoder.rnn = RNNS[decoder["cell"]](decoder["embedding_dim"] + (self.size if self.feeds else 0),
                                                 self.hidden, self.layers, batch_first=True)
        self.decoder.attention = nn.Module()
        if self.kind in ("general", "additive"):
            self.decoder.attention.keys = nn.Linear(width, self.hidden, bias=False)
        if self.kind == "additive":
            self.decoder.attention.query = nn.Linear(self.hidden, self.hidden)
            self.decoder.attention.v = nn.Parameter(torch.zeros(self.hidden))
        if model.decoder.combines:
            self.decoder.combine = nn.Linear(self.hidden + (width if self.kind else 0), self.size)
        self.decoder.output = nn.Linear(self.size, decoder["num_embeddings"])
        if not self.copies:
            self.bridge = nn.Linear(width, self.layers * self.hidden)
            if self.lstm:
                self.bridge_c = nn.Linear(width, self.layers * self.hidden)
        self.load(model)

    def load(self, model: Any) -> None:
        """Copy the weights; the keys are the same."""
        self.to(getattr(torch, model.dtype.name))
        self.load_state_dict({key: torch.tensor(value) for key, value in model.state_dict().items()})

    # ---- encoder ---------------------------------------------------------------------------------------------

    def encode(self, sources: list[list[int]]) -> tuple[Any, Any, Any, Any]:
        """(memory (B, S, N), mask (B, S) of the real ones, keys, the decoder's first state)."""
        lengths = torch.tensor([len(row) for row in sources])
        padded = pad_sequence([torch.tensor(row) for row in sources], batch_first=True)
        packed = pack_padded_sequence(self.encoder.embedding(padded), lengths, True, enforce_sorted=False)
        memory, state = self.encoder.rnn(packed)
        memory, _ = pad_packed_sequence(memory, batch_first=True)
        mask = torch.arange(memory.shape[1]) < lengths[:, None]
        keys = self.decoder.attention.keys(memory) if self.kind in ("general", "additive") else memory
        return memory, mask, keys, self.first_state(state)

    def first_state(self, state: Any) -> Any:
        if self.copies:
            return state
        h, c = state if isinstance(state, tuple) else (state, state)
        directions = 2 if self.encoder.rnn.bidirectional else 1

        def of(bridge: nn.Linear, x: Any) -> Any:
            features = x[-directions:].transpose(0, 1).reshape(x.shape[1], -1)
            return bridge(features).view(-1, self.layers, self.hidden).transpose(0, 1).contiguous()

        first = of(self.bridge, h).tanh()
        return (first, of(self.bridge_c, c)) if self.lstm else first

    # ---- decoder ---------------------------------------------------------------------------------------------

    def look(self, h: Any, memory: Any, mask: Any, keys: Any) -> Any:
        """a_t of h (B, T, H)."""
        if self.kind:
            if self.kind == "additive":
                sums = self.decoder.attention.query(h)[:, :, None] + keys[:, None]
                scores = sums.tanh() @ self.decoder.attention.v
            else:
                scores = h @ keys.transpose(1, 2)
            weights = scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1)
            h = torch.cat((weights @ memory, h), -1)
        return self.decoder.combine(h).tanh() if hasattr(self.decoder, "combine") else h

    def forward(self, sources: list[list[int]], targets: list[list[int]]) -> Any:
        """Logits (B, T, V), teacher forcing."""
        memory, mask, keys, state = self.encode(sources)
        start = self.tokens["start"]
        inputs = pad_sequence([torch.tensor([start, *row]) for row in targets], batch_first=True)
        embedded = self.decoder.embedding(inputs)
        if not self.feeds:
            return self.decoder.output(self.look(self.decoder.rnn(embedded, state)[0], memory, mask, keys))
        fed, found = embedded.new_zeros(len(targets), 1, self.size), []
        for t in range(embedded.shape[1]):
            h, state = self.decoder.rnn(torch.cat((embedded[:, t : t + 1], fed), -1), state)
            fed = self.look(h, memory, mask, keys)
            found.append(fed)
        return self.decoder.output(torch.cat(found, 1))

    def loss(self, sources: list[list[int]], targets: list[list[int]], smoothing: float = 0.0) -> Any:
        logits = self(sources, targets)
        end = self.tokens["end"]
        goal = pad_sequence([torch.tensor([*row, end]) for row in targets], batch_first=True, padding_value=-100)
        return functional.cross_entropy(logits.flatten(0, 1), goal.flatten(), label_smoothing=smoothing)

    @torch.inference_mode()
    def beam_search(self, sources: list[list[int]], beam: int, steps: int) -> Any:
        """Tokens (B, steps) of the best hypothesis; no end token before the last step, so that all are as long."""
        memory, mask, keys, state = self.encode(sources)
        batch, end = len(sources), self.tokens["end"]

        def spread(x: Any, dim: int) -> Any:
            return x.repeat_interleave(beam, dim)

        memory, mask, keys = spread(memory, 0), spread(mask, 0), spread(keys, 0)
        state = tuple(spread(s, 1) for s in state) if self.lstm else spread(state, 1)
        tokens = torch.full((batch * beam, 1), self.tokens["start"])
        said = torch.zeros((batch * beam, 0), dtype=torch.long)
        scores = torch.full((batch, beam), float("-inf"))
        scores[:, 0] = 0
        first = torch.arange(batch)[:, None] * beam
        for _ in range(steps):
            h, state = self.decoder.rnn(self.decoder.embedding(tokens), state)
            logits = self.decoder.output(self.look(h, memory, mask, keys))[:, 0]
            logits[:, end] = float("-inf")
            if beam == 1:
                tokens = logits.argmax(-1, keepdim=True)
                said = torch.cat((said, tokens), 1)
                continue
            total = scores[:, :, None] + logits.log_softmax(-1).view(batch, beam, -1)
            scores, found = total.flatten(1).topk(beam)
            parents = (first + found // logits.shape[1]).flatten()
            tokens = (found % logits.shape[1]).view(-1, 1)
            said = torch.cat((said[parents], tokens), 1)
            state = tuple(s[:, parents] for s in state) if self.lstm else state[:, parents]
        return said.view(batch, beam, -1)[:, 0]
