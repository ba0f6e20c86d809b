"""topk_indices: torch.library, sizes that only a GPU can take, and every call that is refused."""

import re

import pytest
import torch
from test_topk import ALONE, topk
from topk_oracle import GARBAGE, VALUES, expected, make_logits
from torch._subclasses.fake_tensor import FakeTensorMode

import dsa_ext
from dsa_ext import topk as topk_module

BF16, F32, I32, I64 = torch.bfloat16, torch.float32, torch.int32, torch.int64
OPS = torch.ops.dsa_ext
e = torch.empty

# --- torch.library, torch.compile


def options(rows, mapping, device="cpu"):
    """lengths, row_starts, block_table, page_size, offsets, as the op takes them."""
    per_row = [torch.full((rows,), 90, dtype=I32, device=device), torch.full((rows,), 3, dtype=I32, device=device)]
    if mapping == "table":
        return [*per_row, torch.arange(20, dtype=I32, device=device).view(2, 10), 10, None]
    return [*per_row, None, None, torch.arange(rows, dtype=I32, device=device) if mapping == "offsets" else None]


@pytest.mark.parametrize("mapping", ["none", "offsets", "table"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_opcheck(mapping, dtype, device):
    logits = torch.randn(4, 100).to(dtype).to(device)
    given = options(4, mapping, device)
    torch.library.opcheck(OPS.topk_indices.default, (logits, 16, *given))
    torch.library.opcheck(OPS.topk_indices.default, (logits, 16))
    out = torch.full((4, 16), GARBAGE, dtype=I32, device=device)
    torch.library.opcheck(OPS.topk_indices_out.default, (logits, 16, *given, out))


BACKENDS = [("eager", "cpu"), ("aot_eager", "cpu"), pytest.param("inductor", "cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("backend, device", BACKENDS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, device, dynamic):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend=backend, dynamic=dynamic)
    def f(logits, lengths, out):
        dsa_ext.topk_indices(logits, 16, lengths=lengths, out=out)
        return dsa_ext.topk_indices(logits * 2, 16, lengths=lengths) + 1

    for rows, columns in ((3, 100), (5, 77)):
        logits = torch.randn(rows, columns, device=device)
        lengths = torch.arange(10, 10 + rows, dtype=I32, device=device)
        out = torch.full((rows, 16), GARBAGE, dtype=I32, device=device)
        result = f(logits, lengths, out)
        want = expected(logits.cpu(), 16, lengths.cpu())
        assert torch.equal(out.cpu(), want) and torch.equal(result.cpu(), want + 1)


@pytest.mark.parametrize("where", ["cuda", "meta"])
def test_fake_and_meta_tensors(where):
    with FakeTensorMode():
        logits = e(5, 300, dtype=BF16, device=where)
        result = dsa_ext.topk_indices(logits, 64, lengths=e(5, dtype=I32, device=where))
        assert result.shape == (5, 64) and result.dtype == I32 and result.device.type == where
        out = e(5, 64, dtype=I32, device=where)
        assert dsa_ext.topk_indices(logits, 64, out=out) is out


# --- on a GPU only


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("rows", [1, 3, 20, 67, 130, 300, 8192])
def test_many_rows(rows, dtype):
    """From a cluster a row to many rows a CTA's place."""
    logits = make_logits("normal", min(rows, 300), 12000, dtype)
    lengths = torch.randint(0, 12001, (rows,)).int()
    lengths[::7] = 12000
    logits = logits[torch.arange(rows) % len(logits)]
    assert torch.equal(topk(logits, 2048, "cuda", lengths=lengths), dsa_ext.topk_indices(logits, 2048, lengths=lengths))


@pytest.mark.gpu
@pytest.mark.parametrize("k", [64, 2048, 4096])
@pytest.mark.parametrize("rows", [1, 2 * ALONE])
@pytest.mark.parametrize("values", ["normal", "equal", "few", "ascending", "together", "special", "ties"])
def test_rows_of_a_million(values, rows, k):
    logits = make_logits(values, 1, 2**20 + 5)
    want = expected(logits, k).expand(rows, -1)
    assert torch.equal(topk(logits.cuda().expand(rows, -1), k), want)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 2 * ALONE])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_a_hundred_thousand_ties_at_the_threshold(rows, dtype):
    x = torch.full((131072,), 0.5)
    x[torch.randperm(131072)[:1500]] = torch.rand(1500) + 1
    x[torch.randperm(131072)[:20000]] = -1.0
    logits = x[None].to(dtype)
    assert int((logits == 0.5).sum()) > 100_000
    assert torch.equal(topk(logits.cuda().expand(rows, -1), 2048), expected(logits, 2048).expand(rows, -1))


@pytest.mark.gpu
def test_more_than_2_31_elements(free_memory):
    rows, columns = 70000, 33000  # 4.6 GB of bf16
    logits = torch.full((rows, columns), torch.nan, dtype=BF16, device="cuda")
    some = torch.tensor([0, 1, 64999, 65000, 65075, 69998, 69999])
    logits[some.cuda()] = torch.randn(len(some), columns, device="cuda").to(BF16)
    result = dsa_ext.topk_indices(logits, 512)
    assert torch.equal(result[some.cuda()].cpu(), expected(logits[some.cuda()].cpu(), 512))
    result[some.cuda()] = -1
    assert bool((result == -1).all())


@pytest.mark.gpu
def test_row_longer_than_2_29(free_memory):
    columns = 2**31 - 2**20 + 3
    logits = torch.full((1, columns), -1.0, dtype=BF16, device="cuda")
    places = torch.randint(0, columns, (3000,)).unique()
    logits[0, places.cuda()] = torch.rand(len(places)).add(1).to(BF16).cuda()
    scores, k = logits[0, places.cuda()].cpu(), 1000
    order = torch.sort(scores.float(), descending=True, stable=True).indices[:k]
    assert torch.equal(dsa_ext.topk_indices(logits, k)[0].cpu().long(), places[order].sort().values)


@pytest.mark.gpu
@pytest.mark.parametrize("rows, columns", [(1, 131072), (300, 9000)])
def test_graph_without_synchronisation(rows, columns):
    logits = torch.randn(rows, columns, device="cuda")
    lengths = torch.full((rows,), columns, dtype=I32, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        dsa_ext.topk_indices(logits, 2048, lengths=lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = dsa_ext.topk_indices(logits, 2048, lengths=lengths)
    for _ in range(3):
        logits.normal_()
        lengths.random_(0, columns)
        result.fill_(GARBAGE)
        graph.replay()
        assert torch.equal(result.cpu(), dsa_ext.topk_indices(logits.cpu(), 2048, lengths=lengths.cpu()))


@pytest.mark.gpu
@pytest.mark.parametrize("values", ["normal", "few", "special"])
def test_same_bits_on_every_launch(values):
    for rows, columns in ((1, 131072), (40, 30000), (400, 20000)):
        logits = make_logits(values, 1, columns).cuda().expand(rows, -1).contiguous()
        first = dsa_ext.topk_indices(logits, 2048)
        assert bool((first == first[:1]).all())
        for _ in range(20):
            assert torch.equal(dsa_ext.topk_indices(logits, 2048), first)


@pytest.mark.gpu
@pytest.mark.parametrize("values", VALUES)
def test_same_bits_as_the_reference_on_the_gpu(values):
    logits = make_logits(values, 5, 9001, device="cuda")
    assert torch.equal(dsa_ext.topk_indices(logits, 1000), dsa_ext.reference.topk_indices(logits, 1000))


# --- what is refused


def legal(device="cpu", **changes):
    logits = torch.ones(4, 100, device=device)
    return {"logits": logits, "k": 8} | changes


def refused(error, message, **changes):
    for where, prefix in ((dsa_ext, ""), (dsa_ext.reference, "reference.")):
        with pytest.raises(error, match="^" + re.escape(f"{prefix}topk_indices: {message}") + "$") as caught:
            where.topk_indices(**legal(**changes))
        assert type(caught.value) is error


PER_ROW = ["lengths", "row_starts", "offsets"]


def test_not_a_tensor():
    for name in ("logits", "block_table", "out", *PER_ROW):
        changes = {"page_size": 5} if name == "block_table" else {}
        refused(TypeError, f"{name} is of type list, expected a tensor", **changes, **{name: [1]})


def test_logits():
    for shape in ((100,), (4, 1, 100), ()):
        refused(ValueError, f"logits has shape {shape}, expected (rows, columns)", logits=e(shape))
    expected_dtypes = "expected bfloat16 or float32 or float16 or float64"
    refused(TypeError, f"logits is int32, {expected_dtypes}", logits=e(4, 100, dtype=I32))
    message = "logits has strides (200, 2), expected a contiguous last dimension (stride 1)"
    refused(ValueError, message, logits=e(4, 200)[:, ::2])
    with FakeTensorMode():
        for size, what in ((e(2**31, 1, device="meta"), "rows"), (e(1, 2**31, device="meta"), "columns")):
            refused(ValueError, f"logits has {2**31} {what}, expected less than 2^31", logits=size)


def test_k():
    for k in (0, -1, 4097):
        refused(ValueError, f"k is {k}, expected 1 <= k <= 4096", k=k)
    for k, kind in ((8.0, "float"), (True, "bool"), (None, "NoneType")):
        refused(TypeError, f"k is of type {kind}, expected an int", k=k)


@pytest.mark.parametrize("name", PER_ROW)
def test_per_row(name):
    refused(TypeError, f"{name} is int64, expected int32", **{name: e(4, dtype=I64)})
    for shape in ((3,), (4, 1), ()):
        message = f"{name} has shape {shape}, expected (rows,) = (4,)"
        refused(ValueError, message, **{name: e(shape, dtype=I32)})
    refused(ValueError, f"{name} is on meta, expected cpu, where logits is", **{name: e(4, dtype=I32, device="meta")})


def test_block_table():
    table = e(2, 5, dtype=I32)
    expected_shape = "expected (b, pages) with b a divisor of rows = 4"
    for shape in ((3, 5), (5,), (0, 5), (8, 5)):
        message = f"block_table has shape {shape}, {expected_shape}"
        refused(ValueError, message, block_table=e(shape, dtype=I32), page_size=20)
    refused(TypeError, "block_table is int64, expected int32", block_table=table.long(), page_size=20)
    message = "block_table is on meta, expected cpu, where logits is"
    refused(ValueError, message, block_table=table.to("meta"), page_size=20)
    refused(ValueError, "page_size is None, expected an int with block_table", block_table=table)
    refused(ValueError, "page_size is 20 without block_table, expected both or neither", page_size=20)
    for size in (0, -1, 2**31):
        message = f"page_size is {size}, expected 1 <= page_size < 2^31"
        refused(ValueError, message, block_table=table, page_size=size)
    refused(TypeError, "page_size is of type float, expected an int", block_table=table, page_size=20.0)
    message = "offsets and block_table are given, expected one of them: a position has one image"
    refused(ValueError, message, block_table=table, page_size=20, offsets=e(4, dtype=I32))


def test_out():
    refused(TypeError, "out is int64, expected int32", out=e(4, 8, dtype=I64))
    for shape in ((4, 9), (3, 8), (32,)):
        refused(ValueError, f"out has shape {shape}, expected (rows, k) = (4, 8)", out=e(shape, dtype=I32))
    refused(ValueError, "out is on meta, expected cpu, where logits is", out=e(4, 8, dtype=I32, device="meta"))
    message = "out has strides (16, 2), expected a contiguous last dimension (stride 1)"
    refused(ValueError, message, out=e(4, 16, dtype=I32)[:, ::2])
    message = "out has strides (0, 1), expected a place of its own for every element"
    refused(ValueError, message, out=e(1, 8, dtype=I32).expand(4, -1))
    memory = torch.zeros(400)
    message = "out shares memory with logits, expected a buffer of its own"
    refused(ValueError, message, logits=memory.view(4, 100), out=memory.view(I32)[:32].view(4, 8))


def test_options_are_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        dsa_ext.topk_indices(torch.ones(4, 100), 8, torch.ones(4, dtype=I32))


def test_cuda_takes_float32_and_bfloat16():
    with FakeTensorMode():
        dsa_ext.topk_indices(**legal("cuda"))
        message = "^topk_indices: logits is float16, expected float32 or bfloat16 on a CUDA device$"
        with pytest.raises(TypeError, match=message):
            dsa_ext.topk_indices(e(4, 100, dtype=torch.float16, device="cuda"), 8)


def test_no_kernel_for_the_call(monkeypatch):
    reason = "topk_indices: no implementation takes this call on this device: none is built for its architecture"

    def op(*arguments):
        raise RuntimeError(reason)

    monkeypatch.setattr(topk_module, "_topk_indices", op)
    with pytest.raises(NotImplementedError, match=f"^{re.escape(reason)}$"):
        dsa_ext.topk_indices(**legal())


@pytest.mark.gpu
def test_the_op_itself_is_safe():
    """torch.ops.dsa_ext skips the Python checks; what the kernel's memory safety needs is checked again below."""
    logits, table = torch.ones(4, 100, device="cuda"), torch.zeros(2, 5, dtype=I32, device="cuda")
    length, out = torch.zeros(4, dtype=I32, device="cuda"), torch.zeros(4, 8, dtype=I32, device="cuda")
    none = [None] * 5
    OPS.topk_indices(logits, 8, length, length, table, 20, None)
    for arguments, name in (
        ((logits.double(), 8), "logits"),
        ((logits[0], 8), "logits"),
        ((logits[:, ::2], 8), "logits"),
        ((logits, 0), "k"),
        ((logits, 4097), "k"),
        ((logits, 8, length[:3]), "lengths"),
        ((logits, 8, length.cpu()), "lengths"),
        ((logits, 8, None, length.long()), "row_starts"),
        ((logits, 8, None, None, table, 0), "page_size"),
        ((logits, 8, None, None, table, None), "block_table"),
        ((logits, 8, None, None, table[0], 20), "block_table"),
        ((logits[:3], 8, None, None, table, 20), "block_table"),
        ((logits, 8, None, None, table, 20, length), "offsets"),
    ):
        with pytest.raises(RuntimeError, match=f"topk_indices: {name} "):
            OPS.topk_indices(*arguments)
    for bad in (out[:3], out.long(), out.cpu(), out[:1].expand(4, -1), e(4, 16, dtype=I32, device="cuda")[:, ::2]):
        with pytest.raises(RuntimeError, match="topk_indices: out "):
            OPS.topk_indices_out(logits, 8, *none, bad)
