"""SGLang's and vLLM's DSA call sites, as signatures and shapes, through dsa_ext.compat: what their indexers and
attention backends do around FlashMLA and DeepGEMM, with the top-k of dsa_ext. What comes out is what dsa_ext's own
functions give for the same caches. docs/deploy.md has the same calls as a table."""

from dataclasses import dataclass

import logits_cases
import pytest
import torch
from torch import Tensor

import dsa_ext
from dsa_ext.compat import deep_gemm, flash_mla

I32, U8, BF16, E4M3 = torch.int32, torch.uint8, torch.bfloat16, torch.float8_e4m3fn
PAGE, TOPK, SCALE = 64, 48, 192**-0.5
KERNEL_HEADS = 64  # what FlashMLA takes on Hopper; engines pad to it


@dataclass
class Model:
    """One layer's caches of a few requests, and the queries of a step. Sizes are V3.2's on a tensor-parallel rank."""

    lens: list[int]  # tokens of each request, the step's included
    new: list[int]  # of which the step's
    device: str
    heads: int = 16
    index_heads: int = 64

    def __post_init__(self):
        tokens, width = sum(self.new), -(-max(self.lens) // PAGE)
        pages = len(self.lens) * width + 2

        def normal(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
            return torch.randn(*shape).to(dtype).to(self.device)

        self.block_table = torch.randperm(pages)[: pages - 2].view(-1, width).int().to(self.device)
        self.keys = normal(pages * PAGE, 576)
        self.kv_cache = dsa_ext.pack_kv_cache(self.keys, page_size=PAGE)  # uint8 [pages, 64, 656]
        self.index_cache = torch.zeros(pages, PAGE, 132, dtype=U8, device=self.device)
        codes, scale = dsa_ext.quantize_indexer(normal(pages * PAGE, 128))
        every = torch.arange(pages * PAGE, dtype=I32, device=self.device)
        dsa_ext.store_indexer_cache(codes, scale, self.index_cache, every)
        self.index_codes, self.index_scale = codes, scale
        self.q = normal(tokens, self.heads, 576)
        self.q_index, q_scale = dsa_ext.quantize_indexer(normal(tokens, self.index_heads, 128))
        self.weights = normal(tokens, self.index_heads, dtype=torch.float32) * q_scale
        self.context_lens = torch.tensor(self.lens, dtype=I32, device=self.device)
        seen = [n - new + j + 1 for n, new in zip(self.lens, self.new, strict=True) for j in range(new)]
        self.seen = torch.tensor(seen, dtype=I32, device=self.device)  # tokens that each query sees
        of = [b for b, new in enumerate(self.new) for _ in range(new)]
        self.request = torch.tensor(of, device=self.device)  # of each query

    def gathered(self) -> tuple[Tensor, Tensor, Tensor]:
        """The requests' tokens one after the other: their slots; and the range of each query, for a prefill."""
        at = [torch.arange(n, device=self.device) for n in self.lens]
        slots = [self.block_table[b][t // PAGE].long() * PAGE + t % PAGE for b, t in enumerate(at)]
        start = (self.context_lens.cumsum(0) - self.context_lens).int()[self.request]
        return torch.cat(slots), start, start + self.seen

    def expected(self, kv_cache: Tensor) -> tuple[Tensor, Tensor]:
        """Of each query: out [heads, 512] and lse [heads], a request of its own each."""
        one = {"block_table": self.block_table[self.request], "page_size": PAGE}
        args = (self.q_index[:, None], self.index_cache, self.weights[:, None], self.seen[:, None], one["block_table"])
        idx = dsa_ext.paged_indexer_topk(*args, TOPK)
        out, lse = dsa_ext.sparse_mla_decode(self.q[:, None], kv_cache, idx, SCALE)
        return out[:, 0], lse[:, 0]

    def padded(self, fill: float) -> Tensor:
        """q with as many heads as the kernels want, the rest holding this."""
        q = self.q.new_full((len(self.q), KERNEL_HEADS, 576), fill)
        q[:, : self.heads] = self.q
        return q

    def check(self, out: Tensor, lse: Tensor | None = None, kv_cache: Tensor | None = None) -> None:
        want, want_lse = self.expected(self.kv_cache if kv_cache is None else kv_cache)
        torch.testing.assert_close(out[:, : self.heads].float(), want.float(), rtol=2e-2, atol=2e-3)
        if lse is not None:
            torch.testing.assert_close(lse[:, : self.heads], want_lse, rtol=1e-4, atol=1e-4)


def some_prefill(device):
    """One request from its start, one that continues."""
    return Model([70, 130], [70, 30], device)


# --- SGLang: dsa_indexer.py, dsa_backend.py


def test_sglang_prefill(device):
    x = some_prefill(device)
    slots, k_start, k_end = x.gathered()
    # Keys and scales come from the pool as bytes, the scales [tokens, 4].
    k, k_scale = x.index_codes.view(U8)[slots].view(E4M3), x.index_scale[slots].view(-1, 1).view(U8)
    kv = (k, k_scale.view(torch.float32).squeeze(-1))
    logits = deep_gemm.fp8_mqa_logits(x.q_index, kv, x.weights, k_start, k_end, clean_logits=False)
    assert logits.shape == (100, 200) and logits.dtype == torch.float32
    # fast_topk_transform_ragged_fused: rows of the gathered keys.
    topk = dsa_ext.topk_indices(logits, TOPK, lengths=x.seen, row_starts=k_start, offsets=k_start)
    out, _, _ = flash_mla.flash_mla_sparse_fwd(
        q=x.padded(0.0),
        kv=dsa_ext.unpack_kv_cache(x.kv_cache.flatten(0, 1)[slots])[:, None],
        indices=topk[:, None],
        sm_scale=SCALE,
        d_v=512,
        topk_length=x.seen.clamp(max=TOPK),
    )
    assert out.shape == (100, KERNEL_HEADS, 512)
    x.check(out)


def test_sglang_prefill_with_few_indexer_heads(device):
    """It pads them to 32, with weights of 0."""
    x = Model([70, 130], [70, 30], device, index_heads=16)
    slots, k_start, k_end = x.gathered()
    kv = (x.index_codes.view(U8)[slots].view(E4M3), x.index_scale[slots])
    q = torch.zeros(100, 32, 128, device=x.q.device).to(E4M3)
    q.view(U8)[:, :16] = x.q_index.view(U8)
    weights = torch.nn.functional.pad(x.weights, (0, 16))
    got = deep_gemm.fp8_mqa_logits(q, kv, weights, k_start, k_end, clean_logits=False)
    columns = torch.arange(len(kv[0]), device=k_start.device)
    seen = (columns >= k_start[:, None]) & (columns < k_end[:, None])
    logits_cases.verify(got, *logits_cases.masked_logits(x.q_index, kv[0], kv[1].double(), x.weights, seen))


@pytest.mark.parametrize("next_n", [1, 2])
def test_sglang_decode(next_n, device):
    """With next_n > 1 (target verify) tables and indices are expanded to a row a token, and every next_n-th row of the
    table goes to the logits."""
    x = Model([70, 130, 65], [next_n] * 3, device)
    expanded = x.block_table.repeat_interleave(next_n, 0)
    lens = x.seen.view(3, next_n)
    schedule = torch.empty(deep_gemm.get_num_sms() + 1, 2, dtype=I32, device=x.q.device)  # a graph's
    schedule.copy_(deep_gemm.get_paged_mqa_logits_metadata(lens, PAGE, deep_gemm.get_num_sms()))
    pool = x.index_cache.view(len(x.index_cache), -1)  # [pages, 64 * 132]
    logits = deep_gemm.fp8_paged_mqa_logits(
        x.q_index.view(3, next_n, 64, 128),
        pool.view(len(pool), PAGE, 1, 132),
        x.weights,
        lens,
        expanded[::next_n],
        schedule,
        expanded.shape[1] * PAGE,
        clean_logits=False,
    )
    assert logits.shape == (3 * next_n, expanded.shape[1] * PAGE)
    # fast_topk_transform_fused: slots.
    slots = dsa_ext.topk_indices(logits, TOPK, lengths=x.seen, block_table=expanded, page_size=PAGE)
    metadata, splits = flash_mla.get_mla_metadata(
        cache_seqlens=x.seen,
        num_q_tokens_per_head_k=KERNEL_HEADS,
        num_heads_k=1,
        num_heads_q=KERNEL_HEADS,
        is_fp8_kvcache=True,
        topk=TOPK,
    )
    out, lse = flash_mla.flash_mla_with_kvcache(
        q=x.padded(0.0)[:, None],  # a request a token
        k_cache=x.kv_cache.view(E4M3).view(-1, PAGE, 1, 656),
        cache_seqlens=x.seen.clamp(max=TOPK),
        head_dim_v=512,
        tile_scheduler_metadata=metadata,
        num_splits=splits,
        softmax_scale=SCALE,
        indices=slots[:, None],
        block_table=torch.empty(3 * next_n, 0, dtype=I32, device=x.q.device),
        is_fp8_kvcache=True,
    )
    assert out.shape == (3 * next_n, 1, KERNEL_HEADS, 512) and lse.shape == (3 * next_n, KERNEL_HEADS, 1)
    x.check(out[:, 0], lse[:, :, 0])


# --- vLLM: sparse_attn_indexer.py, flashmla_sparse.py


def test_vllm_prefill(device):
    x = some_prefill(device)
    slots, k_start, k_end = x.gathered()
    workspace = torch.full((300, 128), 255, dtype=U8, device=x.q.device).view(E4M3)  # NaN behind what is gathered
    scales = torch.full((300, 4), 255, dtype=U8, device=x.q.device)
    workspace.view(U8)[:200] = x.index_codes.view(U8)[slots]
    scales[:200] = x.index_scale[slots].view(-1, 1).view(U8)
    kv = (workspace[:200], scales[:200].view(torch.float32).squeeze(-1))
    topk = torch.full((120, TOPK), -1, dtype=I32, device=x.q.device)  # the step's buffer, of more tokens
    for tokens in (slice(0, 40), slice(40, 100)):  # as the logits' memory limit cuts them
        ranges = (k_start[tokens], k_end[tokens])
        q = (x.q_index[tokens], None)
        logits = deep_gemm.fp8_fp4_mqa_logits(q, kv, x.weights[tokens], *ranges, clean_logits=False)
        # top_k_per_row_prefill: positions within the request, into the buffer.
        options = {"row_starts": ranges[0], "lengths": ranges[1] - ranges[0], "out": topk[tokens]}
        dsa_ext.topk_indices(logits, TOPK, **options)
    # triton_convert_req_index_to_global_index: slots of a bf16 cache; and how many.
    table, found = x.block_table[x.request], topk[:100]
    places = found.clamp(min=0).long()
    indices = torch.where(found < 0, -1, table.gather(1, places // PAGE) * PAGE + places % PAGE).int()
    cache = x.keys.view(-1, PAGE, 576)
    out, _, lse = flash_mla.flash_mla_sparse_fwd(
        x.padded(float("nan")),  # the padding heads are whatever was there
        cache.view(-1, 1, 576),
        indices.view(100, 1, -1),
        SCALE,
        topk_length=(found >= 0).sum(1).int(),
    )
    x.check(out, lse, cache)


@pytest.mark.parametrize("next_n", [1, 2])
def test_vllm_decode(next_n, device):
    x = Model([70, 130, 65], [next_n] * 3, device)
    lens = x.seen.view(3, next_n)
    buffer = torch.empty(200, 2, dtype=I32, device=x.q.device)
    made = deep_gemm.get_paged_mqa_logits_metadata(lens, PAGE, deep_gemm.get_num_sms())
    buffer[: len(made)] = made
    logits = deep_gemm.fp8_fp4_paged_mqa_logits(
        (x.q_index.reshape(3, next_n, 64, 128), None),
        x.index_cache.unsqueeze(-2),
        x.weights[: 3 * next_n],
        lens,
        x.block_table,
        buffer[: len(made)],
        256,  # of the model's longest sequence: more than the tables hold
        clean_logits=False,
    )
    assert logits.shape == (3 * next_n, 256)
    # persistent_topk, then triton_convert_req_index_to_global_index: slots.
    table = {"block_table": x.block_table, "page_size": PAGE}
    slots = dsa_ext.topk_indices(logits, TOPK, lengths=x.seen, **table)
    metadata, _ = flash_mla.get_mla_metadata()
    for batch in (3, 1):  # decoding alone; and a mixed batch, as one request of all tokens
        out, lse = flash_mla.flash_mla_with_kvcache(
            q=x.padded(float("nan")).view(batch, -1, KERNEL_HEADS, 576),
            k_cache=x.kv_cache.unsqueeze(-2),
            block_table=torch.zeros(batch, 1, dtype=I32, device=x.q.device),
            head_dim_v=512,
            cache_seqlens=torch.full((batch,), 4096, dtype=I32, device=x.q.device),
            tile_scheduler_metadata=metadata if batch == 3 else flash_mla.get_mla_metadata()[0],
            is_fp8_kvcache=True,
            indices=slots.view(batch, -1, TOPK),
            softmax_scale=SCALE,
        )
        x.check(out.flatten(0, 1), lse.transpose(1, 2).flatten(0, 1))


def test_vllm_padding_requests(device):
    """A CUDA graph's batch may have requests without tokens: length 0, and a table of zeros."""
    x = Model([70, 130, 65], [1, 1, 1], device)
    lens = torch.tensor([[70], [0], [65]], dtype=I32, device=x.q.device)
    table = x.block_table * (lens > 0)
    metadata = deep_gemm.get_paged_mqa_logits_metadata(lens, PAGE, 132)
    arguments = (x.index_cache.unsqueeze(-2), x.weights, lens, table, metadata, 192)
    logits = deep_gemm.fp8_fp4_paged_mqa_logits((x.q_index[:, None], None), *arguments, clean_logits=False)
    slots = dsa_ext.topk_indices(logits, TOPK, lengths=lens[:, 0], block_table=table, page_size=PAGE)
    assert (slots[1] == -1).all() and (slots[[0, 2]] >= 0).all()
    out, lse = flash_mla.flash_mla_with_kvcache(
        x.q[:, None], x.kv_cache[:, :, None], None, None, 512, flash_mla.get_mla_metadata()[0],
        softmax_scale=SCALE, is_fp8_kvcache=True, indices=slots[:, None],
    )  # fmt: skip
    assert (out[1] == 0).all() and (lse[1] == torch.inf).all()
    want, _ = x.expected(x.kv_cache)
    torch.testing.assert_close(out[[0, 2], 0].float(), want[[0, 2]].float(), rtol=2e-2, atol=2e-3)
