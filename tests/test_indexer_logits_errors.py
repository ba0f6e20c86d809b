"""The indexer's logits: every call that is refused, in words that name the argument; torch.library, torch.compile."""

import re

import pytest
import torch
from logits_cases import E4M3, PagedCase, RaggedCase, make_inputs, make_paged_inputs
from torch._subclasses.fake_tensor import FakeTensorMode

import dsa_ext
from dsa_ext import logits

F32, F64, BF16, I32, I64, U8 = torch.float32, torch.float64, torch.bfloat16, torch.int32, torch.int64, torch.uint8
FUNCTIONS = ["indexer_logits", "paged_indexer_logits", "plan_paged_indexer_logits"]
OPS = torch.ops.dsa_ext
e = torch.empty


def legal(function, device="cpu", **changes):
    """Arguments of a call that is accepted, with some of them changed."""
    if function == "indexer_logits":
        arguments = {
            "q": e(4, 8, 32, dtype=E4M3, device=device),
            "k": e(6, 32, dtype=E4M3, device=device),
            "k_scale": e(6, device=device),
            "weights": e(4, 8, device=device),
            "k_start": e(4, dtype=I32, device=device),
            "k_end": e(4, dtype=I32, device=device),
        }
    else:
        lens = torch.ones(2, dtype=I32, device=device)
        arguments = {
            "q": e(2, 3, 8, 32, dtype=E4M3, device=device),
            "k_cache": torch.zeros(5, 8, 36, dtype=U8, device=device),
            "weights": e(2, 3, 8, device=device),
            "context_lens": lens,
            "block_table": torch.zeros(2, 4, dtype=I32, device=device),
            "max_context_len": 20,
        }
        if function == "plan_paged_indexer_logits":
            arguments = {"context_lens": lens, "page_size": 8, "next_n": 3}
    return arguments | changes


def refused(function, error, message, **changes):
    arguments = legal(function, **changes)
    places = [(dsa_ext, "")] + ([(dsa_ext.reference, "reference.")] if hasattr(dsa_ext.reference, function) else [])
    for where, prefix in places:
        with pytest.raises(error, match="^" + re.escape(f"{prefix}{function}: {message}") + "$") as caught:
            getattr(where, function)(**arguments)
        assert type(caught.value) is error


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_legal_call_is_legal(function):
    getattr(dsa_ext, function)(**legal(function))
    if hasattr(dsa_ext.reference, function):
        getattr(dsa_ext.reference, function)(**legal(function))


TENSORS = [(f, n) for f in FUNCTIONS for n, value in legal(f).items() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("function, name", [*TENSORS, *((f, "out") for f in FUNCTIONS), (FUNCTIONS[1], "plan")])
def test_not_a_tensor(function, name):
    refused(function, TypeError, f"{name} is of type list, expected a tensor", **{name: [1]})


@pytest.mark.parametrize(
    "function, name", [(f, n) for f, n in TENSORS if n not in ("q", "k_scale") and f[:4] != "plan"]
)
def test_mixed_devices(function, name):
    elsewhere = legal(function)[name].to("meta")
    refused(function, ValueError, f"{name} is on meta, expected cpu, where q is", **{name: elsewhere})


@pytest.mark.parametrize("function, name", [(f, n) for f, n in TENSORS if n in ("k_start", "k_end", "context_lens")])
def test_integers(function, name):
    wrong = legal(function)[name].long()
    refused(function, TypeError, f"{name} is int64, expected int32", **{name: wrong})


def test_shapes():
    f, f8 = "indexer_logits", {"dtype": E4M3}
    refused(f, ValueError, "q has shape (4, 32), expected (s_q, h, d)", q=e(4, 32, **f8))
    refused(f, ValueError, "k has shape (6, 64), expected (s_k, d) with d = 32", k=e(6, 64, **f8))
    refused(f, ValueError, "k has shape (6, 1, 32), expected (s_k, d) with d = 32", k=e(6, 1, 32, **f8))
    refused(f, ValueError, "k_scale has shape (6, 1), expected (s_k,) with s_k = 6", k_scale=e(6, 1))
    refused(f, ValueError, "weights has shape (4, 9), expected (s_q, h) = (4, 8)", weights=e(4, 9))
    refused(f, ValueError, "k_end has shape (), expected (s_q,) with s_q = 4", k_end=e((), dtype=I32))
    refused(f, ValueError, "out has shape (4, 5), expected (4, 6)", out=e(4, 5))
    f = "paged_indexer_logits"
    refused(f, ValueError, "q has shape (2, 8, 32), expected (b, next_n, h, d)", q=e(2, 8, 32, **f8))
    expected = "expected (pages, page_size, 36) for d = 32"
    for shape in ((5, 8, 32), (40, 36), (5, 8, 1, 36)):
        refused(f, ValueError, f"k_cache has shape {shape}, {expected}", k_cache=e(shape, dtype=U8))
    expected = "expected (b, next_n, h) = (2, 3, 8) or (b * next_n, h)"
    refused(f, ValueError, f"weights has shape (2, 8), {expected}", weights=e(2, 8))
    expected = "expected (b,) or (b, next_n) with b = 2, next_n = 3"
    refused(f, ValueError, f"context_lens has shape (2, 2), {expected}", context_lens=e(2, 2, dtype=I32))
    refused("plan_" + f, ValueError, f"context_lens has shape (2, 2), {expected}", context_lens=e(2, 2, dtype=I32))
    expected = "expected (b, pages of a request) with b = 2"
    refused(f, ValueError, f"block_table has shape (3, 4), {expected}", block_table=e(3, 4, dtype=I32))
    refused(f, ValueError, "out has shape (2, 3, 21), expected (2, 3, 20)", out=e(2, 3, 21))


def test_dtypes():
    f = "indexer_logits"
    floats = "float8_e4m3fn or bfloat16 or float32 or float16 or float64"
    refused(f, TypeError, f"q is int32, expected {floats}", q=e(4, 8, 32, dtype=I32))
    refused(f, TypeError, "k is float32, expected float8_e4m3fn as q", k=e(6, 32))
    refused(f, TypeError, "k_scale is bfloat16, expected float32", k_scale=e(6, dtype=BF16))
    refused(f, TypeError, "k_scale is None, expected a tensor beside keys of float8_e4m3fn", k_scale=None)
    refused(f, TypeError, "weights is bfloat16, expected float32", weights=e(4, 8, dtype=BF16))
    outs = "float32 or bfloat16 or float64"
    refused(f, TypeError, f"out is float16, expected {outs}", out=e(4, 6, dtype=torch.float16))
    refused(f, TypeError, f"out_dtype is float16, expected {outs}", out_dtype=torch.float16)
    refused(f, TypeError, f"out_dtype is of type str, expected {outs}", out_dtype="float32")
    f = "paged_indexer_logits"
    refused(f, TypeError, "k_cache is int8, expected uint8", k_cache=e(5, 8, 36, dtype=torch.int8))
    refused(f, TypeError, "block_table is int64, expected int32", block_table=e(2, 4, dtype=I64))
    refused(f, TypeError, "plan is int64, expected int32", plan=e(0, dtype=I64))


def test_values():
    f = "paged_indexer_logits"
    for value in (-1, 2**31):
        message = f"max_context_len is {value}, expected 0 <= max_context_len < 2^31 - 4096"
        refused(f, ValueError, message, max_context_len=value)
    refused(f, TypeError, "max_context_len is of type float, expected an int", max_context_len=2.0)
    message = "plan has shape (3,), expected (0,), as plan_paged_indexer_logits makes it"
    refused(f, ValueError, message, plan=e(3, dtype=I32))
    for name in ("page_size", "next_n"):
        message = f"{name} is 0, expected 1 <= {name} < 2^31"
        refused("plan_" + f, ValueError, message, **{name: 0})
        refused("plan_" + f, TypeError, f"{name} is of type bool, expected an int", **{name: True})
    refused("plan_" + f, ValueError, "out has shape (3,), expected (0,)", out=e(3, dtype=I32))


def test_strides():
    f, expected = "indexer_logits", "expected a contiguous last dimension (stride 1)"
    for name, t in (("q", e(4, 8, 64, dtype=E4M3)), ("k", e(6, 64, dtype=E4M3))):
        t = t[..., ::2]
        refused(f, ValueError, f"{name} has strides {t.stride()}, {expected}", **{name: t})
    refused(f, ValueError, f"out has strides (12, 2), {expected}", out=e(4, 12)[:, ::2])
    message = "out has strides (0, 1), expected a place of its own for every element"
    refused(f, ValueError, message, out=e(1, 6).expand(4, 6))
    message = "out shares memory with weights, expected a buffer of its own"
    memory = e(40)
    refused(f, ValueError, message, out=memory[:24].view(4, 6), weights=memory[8:].view(4, 8))
    cache = e(5, 8, 40, dtype=U8)[..., :36]
    message = "k_cache has strides (320, 40, 1), expected (any, 36, 1): its pages have no gaps"
    refused("paged_indexer_logits", ValueError, message, k_cache=cache)


def test_what_kernels_do_not_take():
    with FakeTensorMode():
        for function in FUNCTIONS[:2]:
            getattr(dsa_ext, function)(**legal(function, "cuda"))

        def on_cuda(function, error, message, **changes):
            with pytest.raises(error, match=f"^{function}: {re.escape(message)}$"):
                getattr(dsa_ext, function)(**legal(function, "cuda") | changes)

        f, on, f8 = "indexer_logits", {"device": "cuda"}, {"device": "cuda", "dtype": E4M3}
        on_cuda(f, TypeError, "q is bfloat16, expected float8_e4m3fn on a CUDA device", q=e(4, 8, 32, dtype=BF16, **on))
        on_cuda(f, ValueError, "q has h = 12, expected 8, 16, 32 or 64 on a CUDA device", q=e(4, 12, 32, **f8))
        on_cuda(f, ValueError, "q has d = 96, expected 32, 64 or 128 on a CUDA device", q=e(4, 8, 96, **f8))
        on_cuda(f, TypeError, "out_dtype is float64, expected float32 or bfloat16", out_dtype=F64)
        message = "k_cache has page_size 53, expected a multiple of 8 on a CUDA device (fastest: of 64, or 32)"
        on_cuda("paged_" + f, NotImplementedError, message, k_cache=e(5, 53, 36, dtype=U8, **on))


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch with CUDA cannot make a fake tensor on xpu")
@pytest.mark.parametrize("function", FUNCTIONS)
def test_another_device(function):
    name = "context_lens" if function.startswith("plan") else "q"
    message = rf"^{function}: {name} is on xpu(:0)?, expected a CUDA or a CPU device$"
    with FakeTensorMode(), pytest.raises(NotImplementedError, match=message):
        getattr(dsa_ext, function)(**legal(function, device="xpu"))


@pytest.mark.parametrize("function", FUNCTIONS[:2])
def test_no_backward(function):
    call = legal(function)
    call["weights"] = call["weights"].requires_grad_()
    getattr(dsa_ext, function)(**call)  # in no_grad, as all tests are
    message = rf"^{function}: weights requires grad, expected .*detach"
    with torch.enable_grad(), pytest.raises(NotImplementedError, match=message):
        getattr(dsa_ext, function)(**call)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_kernel_for_the_call(function, monkeypatch):
    """The op's own reason, as the exception that says so; any other error of an op stays what it is."""
    reason = f"{function}: no implementation takes this call on compute capability 8.x: none is built"

    def fails_with(error):
        def op(*arguments):
            raise error

        monkeypatch.setattr(logits, f"_{function}", op)

    fails_with(RuntimeError(reason))
    with pytest.raises(NotImplementedError, match=f"^{re.escape(reason)}$"):
        getattr(dsa_ext, function)(**legal(function))
    fails_with(torch.OutOfMemoryError("no memory left"))
    with pytest.raises(torch.OutOfMemoryError):
        getattr(dsa_ext, function)(**legal(function))


# --- torch.library, torch.compile


# What changes its inputs by arithmetic, which e4m3 has not.
E4M3_TESTS = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def test_opcheck(device):
    def check(op, *arguments):
        torch.library.opcheck(op.default, arguments, test_utils=E4M3_TESTS)
        if arguments[0].is_cpu and device == "cpu":
            arguments = [a.float() if isinstance(a, torch.Tensor) and a.dtype == E4M3 else a for a in arguments]
            torch.library.opcheck(op.default, tuple(arguments))

    x = make_inputs(RaggedCase(s_q=3, s_k=70, heads=8, d=32)).on(device)
    arguments = tuple(vars(x).values())
    check(OPS.indexer_logits, *arguments, "float32")
    check(OPS.indexer_logits_out, *arguments, e(3, 70, dtype=BF16, device=device))
    x = make_paged_inputs(PagedCase(heads=8, d=32, table="shuffled", poison=False)).on(device)
    plan = x.plan(dsa_ext.plan_paged_indexer_logits)
    arguments = (x.q, x.k_cache, x.weights, x.context_lens, x.block_table, x.max_context_len)
    check(OPS.paged_indexer_logits, *arguments, None)
    check(OPS.paged_indexer_logits, *arguments, plan)
    check(OPS.paged_indexer_logits_out, *arguments, plan, e(3, 1, 300, device=device))
    check(OPS.plan_paged_indexer_logits, x.context_lens, 64, 1)
    check(OPS.plan_paged_indexer_logits_out, x.context_lens, 64, 1, plan)


BACKENDS = [("eager", "cpu"), ("aot_eager", "cpu"), pytest.param("inductor", "cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("backend, device", BACKENDS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(backend, device, dynamic):
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend=backend, dynamic=dynamic)
    def f(x, weights, start, p, lens):
        plan = dsa_ext.plan_paged_indexer_logits(lens, page_size=64, next_n=2)
        ragged = dsa_ext.indexer_logits(x.q, x.k, x.k_scale, weights * 2, start, x.k_end)
        paged = (p.q, p.k_cache, p.weights, lens + 1, p.block_table)
        return ragged, dsa_ext.paged_indexer_logits(*paged, max_context_len=300, plan=plan)

    for s_q in (5, 9):
        x = make_inputs(RaggedCase(s_q=s_q, s_k=80, heads=8, d=32)).on(device)
        p = make_paged_inputs(PagedCase(heads=8, d=32, next_n=2, poison=False)).on(device)
        ragged, paged = f(x, x.weights, x.k_start, p, p.context_lens)
        assert torch.equal(ragged, dsa_ext.indexer_logits(*(x.q, x.k, x.k_scale, x.weights * 2, x.k_start, x.k_end)))
        arguments = (p.q, p.k_cache, p.weights, p.context_lens + 1, p.block_table)
        assert torch.equal(paged, dsa_ext.paged_indexer_logits(*arguments, max_context_len=300))


@pytest.mark.parametrize("where", ["cuda", "meta"])
def test_fake_and_meta_tensors(where):
    with FakeTensorMode():
        out = dsa_ext.indexer_logits(**legal("indexer_logits", where), out_dtype=BF16)
        assert out.shape == (4, 6) and out.dtype == BF16 and out.device.type == where
        out = dsa_ext.paged_indexer_logits(**legal("paged_indexer_logits", where))
        assert out.shape == (2, 3, 20) and out.dtype == F32 and out.device.type == where
        if where == "cuda" and not torch.cuda.is_available():  # nobody knows a plan's size
            return
        plan = dsa_ext.plan_paged_indexer_logits(**legal("plan_paged_indexer_logits", where))
        assert plan.dtype == I32 and plan.device.type == where


@pytest.mark.gpu
def test_the_op_itself_is_safe():
    """torch.ops.dsa_ext skips the Python checks; what the kernels' memory safety needs is checked again below."""
    ragged = legal("indexer_logits", device="cuda")
    for name, value in {
        "q": ragged["q"][0],
        "k": ragged["k"][:, :16],
        "k_scale": ragged["k_scale"][:5],
        "weights": ragged["weights"].double(),
        "k_start": ragged["k_start"].cpu(),
        "k_end": ragged["k_end"][:3],
    }.items():
        with pytest.raises(RuntimeError, match=f"^indexer_logits: {name} "):
            OPS.indexer_logits(*(ragged | {name: value}).values(), "float32")
    paged = legal("paged_indexer_logits", device="cuda")
    for name, value in {
        "q": paged["q"][0],
        "k_cache": paged["k_cache"][..., :32],
        "weights": paged["weights"][:1],
        "context_lens": paged["context_lens"].long(),
        "block_table": paged["block_table"][:1],
        "max_context_len": -1,
    }.items():
        with pytest.raises(RuntimeError, match=f"^paged_indexer_logits: {name} "):
            OPS.paged_indexer_logits(*(paged | {name: value}).values(), None)
    with pytest.raises(RuntimeError, match="^paged_indexer_logits: plan has shape"):
        OPS.paged_indexer_logits(*paged.values(), e(3, dtype=I32, device="cuda"))
    page = paged["k_cache"].flatten()[1:289].view(1, 8, 36)
    with pytest.raises(RuntimeError, match="^paged_indexer_logits: k_cache starts or steps"):
        OPS.paged_indexer_logits(*(paged | {"k_cache": page}).values(), None)
