from typing import Any

from numpy.typing import ArrayLike

from rnn_core.layers import Embedding
from rnn_core.sequences import Ragged

def call(
    self: Any,
    x: ArrayLike | Ragged,
    state: Any = None,
    lengths: ArrayLike | None = None,
    *,
    embedding: Embedding | None = None,
    return_all_states: bool = False,
) -> Any: ...

class Plain:
    def __init__(self, network: Any, has_c: bool, stepper: Any) -> None: ...
    def forward(self, layer: Any, x: Any, state: Any, batch_first: bool) -> Any: ...
    def backward(
        self, tape: Any, x: Any, dy: Any, dstate: Any, grads: list[Any], need_dx: bool, batch_first: bool
    ) -> Any: ...
