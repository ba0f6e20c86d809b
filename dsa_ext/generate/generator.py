"""Prompts to answers, in tokens: chunked prefill a request at a time, then decoding of all requests together."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from ..nn import Decode, Decoder, LayerCache, Prefill, Rope
from .sample import choose

CACHES = ("fp8", "plain")


class Generator:
    """Answers prompts with a decoder. On a group of ranks each has one, with its part of the decoder, and calls it with
    the same arguments: all get the same answers.

    Args:
        decoder: on its device.
        max_context: tokens of a prompt and its answer together, at most.
        cache: "fp8": latents and the indexer's keys in paged FP8 caches. "plain": as they are in the decoder's dtype;
            on a GPU the latents alone, in bfloat16, since its kernels take the indexer's keys in FP8.
        page_size: tokens of a page.
        chunk: tokens of a prompt that are computed at once; the answer does not depend on it, up to rounding.
    """

    def __init__(
        self, decoder: Decoder, *, max_context: int, cache: str = "fp8", page_size: int = 64, chunk: int = 2048
    ):
        if cache not in CACHES:
            raise ValueError(f"Generator: cache is {cache!r}, expected {' or '.join(map(repr, CACHES))}")
        for name, value in (("max_context", max_context), ("page_size", page_size), ("chunk", chunk)):
            if value < 1:
                raise ValueError(f"Generator: {name} is {value}, expected an int >= 1")
        weight = decoder.norm.weight
        self.device = weight.device
        self.decoder, self.max_context, self.page_size, self.chunk = decoder, max_context, page_size, chunk
        self.dtypes = {"kv_dtype": torch.uint8, "index_dtype": torch.uint8}
        if cache == "plain":
            index = weight.dtype if self.device.type == "cpu" else torch.uint8
            self.dtypes = {"kv_dtype": weight.dtype, "index_dtype": index}
        self.rope = Rope(decoder.config.attention.rope, device=self.device)

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Collection[int] = (),
    ) -> list[list[int]]:
        """The tokens that follow each prompt, at most max_new_tokens, up to and without the first of `stop`.

        Args:
            prompts: tokens, at least one each. All are decoded together.
            temperature: 0 for the likeliest token, else that of the softmax that tokens are drawn from.
            seed: of the draws; the same arguments give the same answers.

        Raises:
            ValueError: a prompt is empty, has a token outside the vocabulary, or is longer than the cache allows.
        """
        self.check(prompts, max_new_tokens, temperature)
        randomness = torch.Generator(self.device).manual_seed(seed)
        answers: list[list[int]] = [[] for _ in prompts]
        if not prompts or max_new_tokens == 0:
            return answers
        # The last new token is never computed on, and so needs no place.
        longest = max(map(len, prompts)) + max_new_tokens - 1
        pages = -(-longest // self.page_size)
        count = len(prompts) * pages
        caches = self.decoder.new_caches(pages=count, page_size=self.page_size, **self.dtypes)
        table = torch.arange(count, dtype=torch.int32, device=self.device).view(-1, pages)
        rows = [self._prefill(prompt, table[i], caches) for i, prompt in enumerate(prompts)]
        active, logits = list(range(len(prompts))), torch.cat(rows)
        while True:
            new = choose(logits, temperature, randomness).tolist()
            kept = []
            for request, token in zip(active, new, strict=True):
                if token not in stop:
                    answers[request].append(token)
                    if len(answers[request]) < max_new_tokens:
                        kept.append(request)
            if not kept:
                return answers
            active = kept
            last = [answers[request][-1] for request in active]
            lengths = [len(prompts[request]) + len(answers[request]) for request in active]
            logits = self._decode(last, lengths, table[active], caches)

    def _prefill(self, prompt: Sequence[int], pages: Tensor, caches: list[LayerCache]) -> Tensor:
        """float32 [1, vocab], of the token behind the prompt."""
        tokens = torch.tensor(prompt, device=self.device)
        for start in range(0, len(prompt), self.chunk):
            part = tokens[start : start + self.chunk]
            step = Prefill(pages, start=start, length=len(part), page_size=self.page_size, rope=self.rope)
            x = self.decoder(part, step, caches)
        return self.decoder.logits(x[-1:])

    def _decode(self, tokens: list[int], lengths: list[int], table: Tensor, caches: list[LayerCache]) -> Tensor:
        """float32 [b, vocab], of the token behind the given one of each request, which is its lengths-th."""
        step = Decode(
            table,
            torch.tensor(lengths, dtype=torch.int32, device=self.device),
            next_n=1,
            max_context_len=-(-max(lengths) // self.page_size) * self.page_size,
            page_size=self.page_size,
            rope=self.rope,
        )
        return self.decoder.logits(self.decoder(torch.tensor(tokens, device=self.device), step, caches))

    def check(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float) -> None:
        """Raises what generate would raise."""
        if max_new_tokens < 0:
            raise ValueError(f"generate: max_new_tokens is {max_new_tokens}, expected an int >= 0")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"generate: temperature is {temperature}, expected a finite number >= 0")
        vocabulary = self.decoder.config.vocab_size
        for i, prompt in enumerate(prompts):
            if not prompt:
                raise ValueError(f"generate: prompts[{i}] is empty, expected at least one token")
            for token in prompt:
                if not 0 <= token < vocabulary:
                    raise ValueError(f"generate: prompts[{i}] has token {token}, expected 0 ... {vocabulary - 1}")
            if len(prompt) + max_new_tokens > self.max_context:
                raise ValueError(
                    f"generate: prompts[{i}] has {len(prompt)} tokens and max_new_tokens is {max_new_tokens}, expected "
                    f"at most max_context = {self.max_context} together"
                )
