"""The next token from logits."""

import torch
from torch import Tensor


def choose(logits: Tensor, temperature: float, randomness: torch.Generator | None = None) -> Tensor:
    """float32 [b, vocab] -> int64 [b]: the largest (of equal ones the first) at temperature 0, else a draw from
    softmax(logits / temperature).

    Equal logits and states of `randomness` give equal tokens, so that ranks need not tell each other what they drew.
    """
    if temperature == 0:
        return logits.argmax(-1)
    p = (logits / temperature).softmax(-1)
    return torch.multinomial(p, 1, generator=randomness).squeeze(-1)
