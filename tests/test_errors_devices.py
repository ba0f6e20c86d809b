"""Refusals that depend on devices, on grad mode and on what is built."""

import math
import re

import pytest
import torch
from cases import SparseMlaFwdCase, make_inputs
from test_errors import BF16, F32, I32, KV3, NAMES, e, legal
from torch._subclasses.fake_tensor import FakeTensorMode

import dsa_ext
from dsa_ext import attention


@pytest.mark.parametrize("name", ["q", "kv", "attn_sink"])
def test_no_backward(name):
    call = legal(attn_sink=torch.zeros(2))
    call[name] = call[name].clone().requires_grad_()
    dsa_ext.sparse_mla_fwd(**call)  # in no_grad, as all tests are
    with torch.enable_grad():
        with pytest.raises(NotImplementedError, match=rf"^sparse_mla_fwd: {name} requires grad, expected .*detach"):
            dsa_ext.sparse_mla_fwd(**call)
        call[name] = call[name].detach()
        dsa_ext.sparse_mla_fwd(**call)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"q": (4, 2, 576, F32)}, TypeError, "q is float32, expected bfloat16 on a CUDA device"),
        (
            {"q": (4, 2, 128, BF16), "kv": (9, 128, BF16)},
            ValueError,
            "q has d_qk = 128, expected 576 or 512 on a CUDA device",
        ),
        ({"kv": (9, 2, 576, BF16)}, ValueError, f"kv has shape (9, 2, 576), expected {KV3}"),
        ({"d_v": 256}, ValueError, "d_v is 256, expected 512 on a CUDA device"),
        ({"d_v": 576}, ValueError, "d_v is 576, expected 512 on a CUDA device"),
    ],
)
def test_cuda_takes_less(changes, error, message):
    with FakeTensorMode():
        for name, value in changes.items():
            if isinstance(value, tuple):
                changes = changes | {name: e(value[:-1], dtype=value[-1], device="cuda")}
        with pytest.raises(error, match="^" + re.escape(f"sparse_mla_fwd: {message}") + "$"):
            dsa_ext.sparse_mla_fwd(**legal(device="cuda", **changes))


def test_cuda_and_cpu_mixed():
    with FakeTensorMode():
        call = legal(device="cuda", kv=e(9, 576, dtype=BF16))
        with pytest.raises(ValueError, match="^sparse_mla_fwd: kv is on cpu, expected cuda:0, where q is$"):
            dsa_ext.sparse_mla_fwd(**call)


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch with CUDA cannot make a fake tensor on xpu")
def test_another_device():
    with (
        FakeTensorMode(),
        pytest.raises(NotImplementedError, match="^sparse_mla_fwd: q is on xpu(:0)?, expected a CUDA"),
    ):
        dsa_ext.sparse_mla_fwd(**legal(device="xpu"))


@pytest.mark.parametrize("with_out", [False, True])
def test_no_kernel_for_the_call(with_out, monkeypatch):
    """The op's own reasons, as the exception that says so; any other error of an op stays what it is."""
    reasons = "sparse_mla_fwd: no implementation takes this call on compute capability 8.x: sm90 heads64: made for 9.0"
    name = "_sparse_mla_fwd_out" if with_out else "_sparse_mla_fwd"
    call = legal(out=e(4, 2, 512, dtype=BF16) if with_out else None)

    def fails_with(error):
        def op(*arguments):
            raise error

        monkeypatch.setattr(attention, name, op)

    fails_with(RuntimeError(reasons))
    with pytest.raises(NotImplementedError, match=re.escape(reasons)):
        dsa_ext.sparse_mla_fwd(**call)
    other = torch.OutOfMemoryError("no memory left")
    fails_with(other)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        dsa_ext.sparse_mla_fwd(**call)
    assert caught.value is other


def test_cuda_tensors_with_a_build_for_the_cpu(monkeypatch):
    from dsa_ext import _registration

    cuda, error = torch.device("cuda:0"), NotImplementedError("Could not run 'dsa_ext::sparse_mla_fwd'")
    monkeypatch.setattr(_registration._C, "build_info", lambda: {"archs": []})
    reason = _registration.why_no_kernel("sparse_mla_fwd", error, cuda)
    assert reason.startswith(
        "sparse_mla_fwd: q is on cuda:0, expected the CPU: this build has no CUDA kernels; install"
    )
    assert _registration.why_no_kernel("sparse_mla_fwd", error, torch.device("cpu")) is None
    monkeypatch.setattr(_registration._C, "build_info", lambda: {"archs": ["90a"]})
    assert _registration.why_no_kernel("sparse_mla_fwd", error, cuda) is None


@pytest.mark.gpu
def test_cuda_and_cpu_mixed_for_real():
    call = legal(device="cuda", idx=torch.zeros(4, 3, dtype=I32))
    with pytest.raises(ValueError, match="^sparse_mla_fwd: idx is on cpu, expected cuda:0, where q is$"):
        dsa_ext.sparse_mla_fwd(**call)


@pytest.mark.gpu
def test_the_op_itself_is_safe():
    """torch.ops.dsa_ext skips the Python checks; what the kernels' memory safety needs is checked again below."""
    x = make_inputs(SparseMlaFwdCase(), "cuda")
    op, op_out = torch.ops.dsa_ext.sparse_mla_fwd, torch.ops.dsa_ext.sparse_mla_fwd_out
    op(x.q, x.kv, x.idx, 0.1)
    for arguments, name in (
        ((x.q.cpu(), x.kv, x.idx, 0.1), "q|kv"),
        ((x.q, x.kv.cpu(), x.idx, 0.1), "kv"),
        ((x.q, x.kv, x.idx.cpu(), 0.1), "idx"),
        ((x.q.float(), x.kv, x.idx, 0.1), "q"),
        ((x.q, x.kv.half(), x.idx, 0.1), "kv"),
        ((x.q, x.kv, x.idx.long(), 0.1), "idx"),
        ((x.q[0], x.kv, x.idx, 0.1), "q"),
        ((x.q[..., :128], x.kv[..., :128], x.idx, 0.1), "q"),
        ((x.q, x.kv[:, :512], x.idx, 0.1), "kv"),
        ((x.q, x.kv, x.idx[:2], 0.1), "idx"),
        ((x.q, x.kv, x.idx, 0.1, 256), "d_v"),
        ((x.q, x.kv, x.idx, math.nan), "scale"),
        ((x.q, x.kv, x.idx, 0.1, 512, torch.zeros(15, device="cuda")), "attn_sink"),
        ((x.q, x.kv, x.idx, 0.1, 512, torch.zeros(16)), "attn_sink"),
        ((x.q, x.kv, x.idx, 0.1, 512, None, torch.zeros(2, dtype=I32, device="cuda")), "topk_length"),
    ):
        with pytest.raises((RuntimeError, ValueError, TypeError), match=rf"sparse_mla_fwd: .*({name})"):
            op(*arguments)
    good = op(x.q, x.kv, x.idx, 0.1)
    for i, name in enumerate(NAMES):
        for bad in (good[i].cpu(), good[i].half(), good[i][:2], good[i][:1].expand_as(good[i])):
            out = [*good[:i], bad, *good[i + 1 :]]
            with pytest.raises(RuntimeError, match=f"sparse_mla_fwd: {name}"):
                op_out(x.q, x.kv, x.idx, 0.1, 512, None, None, *out)
