"""indexer_topk and paged_indexer_topk: every call that is refused, in words that name the function and the argument;
torch.library, torch.compile."""

import re

import pytest
import torch
from indexer_topk_cases import E4M3, PagedCase, RaggedCase, call_paged, call_ragged, garbage, make_paged, make_ragged
from torch._subclasses.fake_tensor import FakeTensorMode

import dsa_ext
from dsa_ext import indexer

F32, BF16, I32, U8 = torch.float32, torch.bfloat16, torch.int32, torch.uint8
RAGGED, PAGED = FUNCTIONS = ["indexer_topk", "paged_indexer_topk"]
OPS = torch.ops.dsa_ext
e = torch.empty


def legal(function, device="cpu", **changes):
    """Arguments of a call that is accepted, with some of them changed."""
    on = {"device": device}
    if function == RAGGED:
        arguments = {
            "q": e(4, 8, 32, dtype=E4M3, **on),
            "k": e(6, 32, dtype=E4M3, **on),
            "k_scale": e(6, **on),
            "weights": e(4, 8, **on),
            "k_start": e(4, dtype=I32, **on),
            "k_end": e(4, dtype=I32, **on),
        }
    else:
        arguments = {
            "q": e(2, 3, 8, 32, dtype=E4M3, **on),
            "k_cache": torch.zeros(5, 8, 36, dtype=U8, **on),
            "weights": e(2, 3, 8, **on),
            "context_lens": torch.ones(2, dtype=I32, **on),
            "block_table": torch.zeros(2, 4, dtype=I32, **on),
        }
    return arguments | {"topk": 5} | changes


def refused(function, error, message, **changes):
    for where, prefix in ((dsa_ext, ""), (dsa_ext.reference, "reference.")):
        with pytest.raises(error, match="^" + re.escape(f"{prefix}{function}: {message}") + "$") as caught:
            getattr(where, function)(**legal(function, **changes))
        assert type(caught.value) is error


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_legal_call_is_legal(function):
    for where in (dsa_ext, dsa_ext.reference):
        assert getattr(where, function)(**legal(function)).dtype == I32


TENSORS = [(f, n) for f in FUNCTIONS for n, value in legal(f).items() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("function, name", [*TENSORS, *((f, "out") for f in FUNCTIONS), (PAGED, "plan")])
def test_not_a_tensor(function, name):
    refused(function, TypeError, f"{name} is of type list, expected a tensor", **{name: [1]})


@pytest.mark.parametrize("function, name", [(f, n) for f, n in TENSORS if n != "q"])
def test_mixed_devices(function, name):
    elsewhere = legal(function)[name].to("meta")
    refused(function, ValueError, f"{name} is on meta, expected cpu, where q is", **{name: elsewhere})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_numbers(function):
    for topk in (0, -1, 4097, 2**70):
        refused(function, ValueError, f"topk is {topk}, expected 1 <= topk <= 4096", topk=topk)
    for value in (0, -1, 2**63):
        message = f"workspace_limit is {value}, expected 1 <= workspace_limit < 2^63 bytes"
        refused(function, ValueError, message, workspace_limit=value)
    for name in ("topk", "workspace_limit"):
        refused(function, TypeError, f"{name} is of type float, expected an int", **{name: 5.0})
        refused(function, TypeError, f"{name} is of type bool, expected an int", **{name: True})


def test_max_context_len():
    refused(PAGED, TypeError, "max_context_len is of type str, expected an int", max_context_len="9")
    for value in (-1, 2**31 - 4096):
        message = f"max_context_len is {value}, expected 0 <= max_context_len < 2^31 - 4096"
        refused(PAGED, ValueError, message, max_context_len=value)
    table = torch.zeros(2, 1, dtype=I32).expand(2, 2**28)
    message = "block_table has room for 2147483648 tokens, expected fewer than 2^31 - 4096, or max_context_len"
    refused(PAGED, ValueError, message, block_table=table)
    dsa_ext.paged_indexer_topk(**legal(PAGED, block_table=table, max_context_len=20))


def test_shapes_and_dtypes():
    """Some of what the logits' own tests go through in full."""
    refused(RAGGED, ValueError, "q has shape (4, 32), expected (s_q, h, d)", q=e(4, 32, dtype=E4M3))
    refused(RAGGED, ValueError, "k_end has shape (3,), expected (s_q,) with s_q = 4", k_end=e(3, dtype=I32))
    refused(RAGGED, TypeError, "k_start is int64, expected int32", k_start=e(4, dtype=torch.int64))
    refused(RAGGED, ValueError, "out has shape (4, 6), expected (4, 5)", out=e(4, 6, dtype=I32))
    expected = "expected (b,) or (b, next_n) with b = 2, next_n = 3"
    refused(PAGED, ValueError, f"context_lens has shape (3,), {expected}", context_lens=e(3, dtype=I32))
    message = "block_table has shape (8,), expected (b, pages of a request) with b = 2"
    refused(PAGED, ValueError, message, block_table=e(8, dtype=I32))
    refused(PAGED, ValueError, "out has shape (6, 5), expected (2, 3, 5)", out=e(6, 5, dtype=I32))
    message = "plan has shape (3,), expected (0,), as plan_paged_indexer_logits makes it"
    refused(PAGED, ValueError, message, plan=e(3, dtype=I32))


@pytest.mark.parametrize("function, shape", [(RAGGED, (4, 5)), (PAGED, (2, 3, 5))])
def test_out(function, shape):
    wide = (*shape[:-1], 10)
    refused(function, TypeError, "out is int64, expected int32", out=e(shape, dtype=torch.int64))
    refused(function, ValueError, "out is on meta, expected cpu, where q is", out=e(shape, dtype=I32, device="meta"))
    out = e(wide, dtype=I32)[..., ::2]
    message = f"out has strides {out.stride()}, expected a contiguous last dimension (stride 1)"
    refused(function, ValueError, message, out=out)
    out = e(shape[-1], dtype=I32).expand(shape)
    message = f"out has strides {out.stride()}, expected a place of its own for every element"
    refused(function, ValueError, message, out=out)
    memory = e(64, dtype=I32)
    out, name = memory[: out.numel()].view(shape), "k_end" if function == RAGGED else "context_lens"
    shared = memory[1 : 1 + len(legal(function)[name])]
    message = f"out shares memory with {name}, expected a buffer of its own"
    refused(function, ValueError, message, out=out, **{name: shared})


def test_what_kernels_do_not_take():
    with FakeTensorMode():
        for function, name, value, error, message in (
            (RAGGED, "q", e(4, 12, 32, dtype=E4M3, device="cuda"), ValueError, "q has h = 12, expected 8"),
            (PAGED, "q", e(2, 3, 8, 32, device="cuda"), TypeError, "q is float32, expected float8_e4m3fn on a CUDA"),
            (PAGED, "k_cache", e(5, 53, 36, dtype=U8, device="cuda"), NotImplementedError, "k_cache has page_size 53"),
        ):
            getattr(dsa_ext, function)(**legal(function, "cuda"))
            with pytest.raises(error, match=f"^{function}: {message}"):
                getattr(dsa_ext, function)(**legal(function, "cuda") | {name: value})


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_backward(function):
    call = legal(function)
    call["weights"] = call["weights"].requires_grad_()
    getattr(dsa_ext, function)(**call)  # in no_grad, as all tests are
    message = rf"^{function}: weights requires grad, expected .*detach"
    with torch.enable_grad(), pytest.raises(NotImplementedError, match=message):
        getattr(dsa_ext, function)(**call)


@pytest.mark.parametrize("function, inner", [(RAGGED, "indexer_logits"), (PAGED, "paged_indexer_logits")])
@pytest.mark.parametrize("with_out", [False, True])
def test_errors_of_the_ops_within(function, inner, with_out, monkeypatch):
    """They come under the name of the function that was called; any other error stays what it is."""
    options = {"out": dsa_ext.reference.__dict__[function](**legal(function))} if with_out else {}

    def fails_with(error):
        def op(*arguments):
            raise error

        monkeypatch.setattr(indexer, f"_{function}_out" if with_out else f"_{function}", op)

    call = legal(function) | options
    for name in (inner, "topk_indices"):
        fails_with(RuntimeError(f"{name}: no implementation takes this call on compute capability 8.x: none is built"))
        with pytest.raises(NotImplementedError, match=f"^{function}: no implementation takes this call on .*built$"):
            getattr(dsa_ext, function)(**call)
        fails_with(RuntimeError(f"{name}: no such thing"))
        with pytest.raises(RuntimeError, match=f"^{function}: no such thing$"):
            getattr(dsa_ext, function)(**call)
    error = torch.OutOfMemoryError("no memory left")
    fails_with(error)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        getattr(dsa_ext, function)(**call)
    assert caught.value is error


# --- torch.library, torch.compile

# What changes its inputs by arithmetic, which e4m3 has not.
E4M3_TESTS = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def test_opcheck(device):
    def check(op, *arguments):
        torch.library.opcheck(op.default, arguments, test_utils=E4M3_TESTS)
        if device == "cpu":
            arguments = [a.float() if isinstance(a, torch.Tensor) and a.dtype == E4M3 else a for a in arguments]
            torch.library.opcheck(op.default, tuple(arguments))

    x = make_ragged(RaggedCase(s_q=5, s_k=70, heads=8, d=32)).on(device)
    arguments = (*vars(x).values(), 9, 800)
    check(OPS.indexer_topk, *arguments)
    check(OPS.indexer_topk_out, *arguments, garbage(5, 9, device=device))
    x = make_paged(PagedCase(heads=8, d=32, table="shuffled", poison=False)).on(device)
    arguments = (x.q, x.k_cache, x.weights, x.context_lens, x.block_table, 9, 300)
    for plan in (None, x.plan(dsa_ext.plan_paged_indexer_logits)):
        check(OPS.paged_indexer_topk, *arguments, plan, 2000)
        check(OPS.paged_indexer_topk_out, *arguments, plan, 2**20, garbage(3, 1, 9, device=device))


BACKENDS = [("eager", "cpu"), ("aot_eager", "cpu"), pytest.param("inductor", "cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("backend, device", BACKENDS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, device, dynamic):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend=backend, dynamic=dynamic)
    def f(x, weights, p, out):
        ragged = dsa_ext.indexer_topk(x.q, x.k, x.k_scale, weights * 2, x.k_start, x.k_end, 9, workspace_limit=800)
        dsa_ext.paged_indexer_topk(p.q, p.k_cache, p.weights * 2, p.context_lens, p.block_table, 9, out=out)
        return ragged + 1

    for s_q in (5, 9):
        x = make_ragged(RaggedCase(s_q=s_q, s_k=80, heads=8, d=32)).on(device)
        p = make_paged(PagedCase(heads=8, d=32, next_n=2, poison=False)).on(device)
        out = garbage(3, 2, 9, device=device)
        assert torch.equal(f(x, x.weights, p, out) - 1, call_ragged(dsa_ext.indexer_topk, x, 9))
        assert torch.equal(out, call_paged(dsa_ext.paged_indexer_topk, p, 9, max_context_len=None))


@pytest.mark.parametrize("where", ["cuda", "meta"])
def test_fake_and_meta_tensors(where):
    with FakeTensorMode():
        for function, shape in ((RAGGED, (4, 5)), (PAGED, (2, 3, 5))):
            result = getattr(dsa_ext, function)(**legal(function, where))
            assert result.shape == shape and result.dtype == I32 and result.device.type == where
            out = e(shape, dtype=I32, device=where)
            assert getattr(dsa_ext, function)(**legal(function, where), out=out) is out
