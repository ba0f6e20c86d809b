"""dsa_ext.compat.deep_gemm: DeepGEMM's names, signatures and conventions."""

import inspect
import re

import pytest
import torch
from logits_cases import PagedCase, RaggedCase, expected, expected_paged, make_inputs, make_paged_inputs, verify

from dsa_ext.compat import deep_gemm

I32, F32, BF16 = torch.int32, torch.float32, torch.bfloat16

RAGGED = "q kv weights cu_seq_len_k_start cu_seq_len_k_end clean_logits=True max_seqlen_k=0"
PAGED = "q kv_cache weights context_lens block_table schedule_meta max_context_len clean_logits=False"
SIGNATURES = {
    "fp8_mqa_logits": RAGGED,
    "fp8_fp4_mqa_logits": f"{RAGGED} logits_dtype=torch.float32",
    "fp8_paged_mqa_logits": f"{PAGED} indices=None",
    "fp8_fp4_paged_mqa_logits": f"{PAGED} logits_dtype=torch.float32 indices=None",
    "get_paged_mqa_logits_metadata": "context_lens block_kv num_sms indices=None",
    "get_num_sms": "",
}


@pytest.mark.parametrize("name", list(SIGNATURES))
def test_signatures(name):
    parameters = inspect.signature(getattr(deep_gemm, name)).parameters.values()
    assert {p.kind for p in parameters} <= {inspect.Parameter.POSITIONAL_OR_KEYWORD}
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
    assert " ".join(shown) == SIGNATURES[name]
    assert name in deep_gemm.__all__


# --- ragged


@pytest.mark.parametrize("clean_logits", [True, False])
@pytest.mark.parametrize("case", [RaggedCase(), RaggedCase(heads=32, poison=True, ranges="rows")], ids=lambda c: c.id)
def test_mqa_logits(case, clean_logits, device):
    """Against the definition in float64: also without cleaning, what a query does not see is -inf."""
    x = make_inputs(case)
    want, mass = expected(x)
    x = x.on(device)
    arguments = ((x.k, x.k_scale), x.weights, x.k_start, x.k_end)
    got = deep_gemm.fp8_mqa_logits(x.q, *arguments, clean_logits)
    assert got.dtype == F32 and got.shape == (case.s_q, case.s_k)
    verify(got.cpu(), want, mass)
    (kv, weights, start, end), options = arguments, {"clean_logits": clean_logits, "max_seqlen_k": 0}
    options |= {"cu_seq_len_k_start": start, "cu_seq_len_k_end": end}
    for dtype in (F32, BF16):
        again = deep_gemm.fp8_fp4_mqa_logits(q=(x.q, None), kv=kv, weights=weights, logits_dtype=dtype, **options)
        assert again.dtype == dtype
        verify(again.cpu(), want, mass)
        assert torch.equal(again.nan_to_num(), got.to(dtype).nan_to_num())


@pytest.mark.parametrize("columns", [1, 70, 300, 400])
@pytest.mark.parametrize("ranges", ["random", "rows", "none"])
def test_compressed(ranges, columns, device, monkeypatch):
    """Rows that begin with their first key, cut off, or with -inf behind."""
    monkeypatch.setattr(deep_gemm, "WORKSPACE_LIMIT", 2 * 4 * 300)  # two rows at a time
    x = make_inputs(RaggedCase(ranges=ranges, heads=8, poison=ranges == "rows"))
    wants = [torch.full((5, columns), fill, dtype=torch.float64) for fill in (-torch.inf, 0)]
    for want, whole in zip(wants, expected(x), strict=True):
        for i in range(5):
            start, end = max(int(x.k_start[i]), 0), min(int(x.k_end[i]), 300)
            seen = whole[i, start : max(start, end)][:columns]
            want[i, : len(seen)] = seen
    x = x.on(device)
    arguments = ((x.k, x.k_scale), x.weights, x.k_start, x.k_end, False, columns)
    got = deep_gemm.fp8_mqa_logits(x.q, *arguments)
    assert got.dtype == F32 and got.shape == (5, columns)
    verify(got.cpu(), *wants)
    for dtype in (F32, BF16):
        again = deep_gemm.fp8_fp4_mqa_logits((x.q, None), *arguments, dtype)
        assert again.dtype == dtype
        verify(again.cpu(), *wants)


def test_compressed_without_keys(device):
    x = make_inputs(RaggedCase(heads=8)).on(device)
    kv = (x.k[:0], x.k_scale[:0])
    assert (deep_gemm.fp8_mqa_logits(x.q, kv, x.weights, x.k_start, x.k_end, max_seqlen_k=3) == -torch.inf).all()


# --- paged


def arguments_of(x):
    metadata = deep_gemm.get_paged_mqa_logits_metadata(x.context_lens, x.k_cache.shape[1], 7)
    assert metadata.shape == (8, 2) and metadata.dtype == I32 and metadata.device == x.context_lens.device
    weights = x.weights.flatten(0, 1)
    return (x.k_cache.unsqueeze(2), weights, x.context_lens, x.block_table, metadata, x.max_context_len)


PAGED_CASES = [
    PagedCase(next_n=2, heads=32),
    PagedCase(next_n=3, lens="per_token", gap=64),
    PagedCase(batch=400, heads=8, d=32, page_size=32),
]


@pytest.mark.parametrize("case", PAGED_CASES, ids=lambda case: case.id)
def test_paged_mqa_logits(case, device):
    x = make_paged_inputs(case)
    want, mass = (t.flatten(0, 1) for t in expected_paged(x))
    x = x.on(device)
    arguments = arguments_of(x)
    got = deep_gemm.fp8_paged_mqa_logits(x.q, *arguments)
    assert got.dtype == F32 and got.shape == (case.batch * case.next_n, case.max_context_len)
    verify(got.cpu(), want, mass)
    assert torch.equal(deep_gemm.fp8_paged_mqa_logits(x.q, *arguments, clean_logits=True), got)
    for dtype in (F32, BF16):
        again = deep_gemm.fp8_fp4_paged_mqa_logits((x.q, None), *arguments, False, dtype)
        assert again.dtype == dtype and torch.equal(again, got.to(dtype))


def test_any_metadata_gives_the_same_bits(device):
    x = make_paged_inputs(PagedCase(heads=8, d=32)).on(device)
    *head, metadata, columns = arguments_of(x)
    want = deep_gemm.fp8_paged_mqa_logits(x.q, *head, metadata, columns)
    for other in (metadata[:2], torch.full_like(metadata, -1)):
        assert torch.equal(deep_gemm.fp8_paged_mqa_logits(x.q, *head, other, columns), want)


def test_num_sms_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert deep_gemm.get_num_sms() == 1


@pytest.mark.parametrize("shape", [(0,), (0, 1), (3, 0)])
def test_metadata_of_nothing(shape, device):
    metadata = deep_gemm.get_paged_mqa_logits_metadata(torch.zeros(shape, dtype=I32, device=device), 64, 4)
    assert metadata.shape == (5, 2)


# --- calls that are refused


def call(name, **changes):
    paged, fp4 = "paged" in name, "fp4" in name
    if paged:
        x = make_paged_inputs(PagedCase())
        names = ("kv_cache", "weights", "context_lens", "block_table", "schedule_meta", "max_context_len")
        arguments = dict(zip(names, arguments_of(x), strict=True))
    else:
        x = make_inputs(RaggedCase())
        arguments = {"kv": (x.k, x.k_scale), "weights": x.weights}
        arguments |= {"cu_seq_len_k_start": x.k_start, "cu_seq_len_k_end": x.k_end}
    arguments["q"] = (x.q, None) if fp4 else x.q
    return getattr(deep_gemm, name)(**arguments | changes)


BYTES = torch.zeros(5, 64, 64, dtype=torch.int8)
SCALES = torch.zeros(5, 64, dtype=I32)
NOT_HERE = [
    ("fp8_mqa_logits", {"q": BYTES}, "q is int8, expected float8_e4m3fn: FP4 is not here"),
    ("fp8_mqa_logits", {"kv": (BYTES[0], SCALES[0])}, "kv[0] is int8, expected float8_e4m3fn"),
    ("fp8_fp4_mqa_logits", {"q": (BYTES, SCALES)}, "q[1] is not None, expected None: FP4"),
    ("fp8_fp4_mqa_logits", {"q": (BYTES, None)}, "q is int8, expected float8_e4m3fn"),
    ("fp8_paged_mqa_logits", {"q": BYTES[None]}, "q is int8, expected float8_e4m3fn"),
    ("fp8_paged_mqa_logits", {"indices": SCALES[0]}, "indices is given, expected None"),
    ("fp8_fp4_paged_mqa_logits", {"q": (BYTES[None], SCALES[None])}, "q[1] is not None, expected None: FP4"),
]
WRONG = [
    ("fp8_mqa_logits", {"max_seqlen_k": -1}, ValueError, "max_seqlen_k is -1, expected 0 <= max_seqlen_k"),
    ("fp8_mqa_logits", {"max_seqlen_k": 1.0}, TypeError, "max_seqlen_k is"),
    ("fp8_mqa_logits", {"kv": BYTES}, TypeError, "kv is of type Tensor, expected the tuple (keys, scales)"),
    ("fp8_mqa_logits", {"kv": (BYTES,)}, ValueError, "kv has 1 elements, expected the tuple (keys, scales)"),
    ("fp8_fp4_mqa_logits", {"q": BYTES}, TypeError, "q is of type Tensor, expected the tuple (q, None)"),
    ("fp8_fp4_mqa_logits", {"logits_dtype": torch.half}, TypeError, "logits_dtype is float16, expected float32 or"),
    ("fp8_fp4_paged_mqa_logits", {"logits_dtype": None}, TypeError, "logits_dtype is None, expected float32 or"),
    (
        "fp8_paged_mqa_logits",
        {"kv_cache": torch.zeros(3, 64, 132, dtype=torch.uint8)},
        ValueError,
        "kv_cache has shape (3, 64, 132), expected (pages, page_size, 1, d + 4)",
    ),
    ("fp8_paged_mqa_logits", {"schedule_meta": None}, TypeError, "schedule_meta is"),
    ("fp8_paged_mqa_logits", {"schedule_meta": torch.zeros(3, 2)}, TypeError, "schedule_meta is float32, expected"),
    (
        "fp8_paged_mqa_logits",
        {"schedule_meta": SCALES},
        ValueError,
        "schedule_meta has shape (5, 64), expected (num_sms + 1, 2)",
    ),
]


@pytest.mark.parametrize(
    "name, changes, error, message", [*((n, c, NotImplementedError, m) for n, c, m in NOT_HERE), *WRONG]
)
def test_refused(name, changes, error, message):
    with pytest.raises(error, match=f"^{name}: {re.escape(message)}"):
        call(name, **changes)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"block_kv": 0}, ValueError, "block_kv is 0, expected 1 <= block_kv"),
        ({"num_sms": 0}, ValueError, "num_sms is 0, expected 1 <= num_sms"),
        ({"num_sms": 1.0}, TypeError, "num_sms is"),
        ({"context_lens": [3]}, TypeError, "context_lens is"),
        ({"indices": SCALES[0]}, NotImplementedError, "indices is given, expected None"),
    ],
)
def test_metadata_refused(changes, error, message):
    arguments = {"context_lens": torch.zeros(3, 1, dtype=I32), "block_kv": 64, "num_sms": 4}
    with pytest.raises(error, match=f"^get_paged_mqa_logits_metadata: {message}"):
        deep_gemm.get_paged_mqa_logits_metadata(**arguments | changes)


def test_other_errors_are_those_of_the_function_below():
    with pytest.raises(TypeError, match="^indexer_logits: k_start is int64, expected int32"):
        call("fp8_mqa_logits", cu_seq_len_k_start=torch.zeros(5, dtype=torch.int64))
    with pytest.raises(TypeError, match="^indexer_logits: k_start is int64, expected int32"):
        call("fp8_mqa_logits", cu_seq_len_k_start=torch.zeros(5, dtype=torch.int64), max_seqlen_k=3)
    for dtype in (F32, BF16):
        for columns in (-1, True, 3.0):
            with pytest.raises((TypeError, ValueError), match="^paged_indexer_logits: max_context_len is"):
                call("fp8_fp4_paged_mqa_logits", max_context_len=columns, logits_dtype=dtype)
