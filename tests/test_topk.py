"""topk_indices on the CPU and on the GPU, against the definition: hard rows, every k and length, mappings, strides."""

import pytest
import torch
from topk_oracle import GARBAGE, INT_MAX, INT_MIN, VALUES, expected, make_logits, poisoned

import dsa_ext

BF16, F32, I32 = torch.bfloat16, torch.float32, torch.int32
DTYPES = [F32, BF16]
KS = (1, 64, 192, 512, 1000, 2048, 4096)
# More rows than that, and a CTA takes one alone; fewer, and a cluster shares a long one.
ALONE = 150


def topk(logits, k, device=None, **options):
    """A call whose output holds garbage before, on the device that logits are on or are to go to."""
    if device is not None:
        logits = on(device, logits)
        options = {name: on(device, t) if isinstance(t, torch.Tensor) else t for name, t in options.items()}
    out = torch.full((len(logits), k), GARBAGE, dtype=I32, device=logits.device)
    assert dsa_ext.topk_indices(logits, k, out=out, **options) is out
    return out.cpu()


def on(device, t):
    """On a device, with the memory around it and the strides that it has."""
    if device == "cpu" or t.is_cuda:
        return t
    if t.numel() == 0:
        return t.to(device)
    whole = t.as_strided((t.untyped_storage().nbytes() // t.element_size(),), (1,), 0)
    return whole.to(device).as_strided(t.shape, t.stride(), t.storage_offset())


def check(logits, k, device, **options):
    assert torch.equal(topk(logits, k, device, **options), expected(logits, k, **options))


# --- scores


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", VALUES)
def test_short_rows(values, dtype, device):
    check(make_logits(values, 2, 3001, dtype), 500, device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", VALUES)
def test_rows_shared_by_ctas(values, dtype, device):
    """Longer than the list of candidates."""
    check(make_logits(values, 1, 66011, dtype), 2048, device)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("k", [512, 2048, 4096])
def test_rows_of_a_cta_alone(values, dtype, k):
    logits = make_logits(values, 4, 40011, dtype)[torch.arange(2 * ALONE) % 4]
    want = expected(logits[:4], k)[torch.arange(2 * ALONE) % 4]
    assert torch.equal(topk(logits, k, "cuda"), want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", ["normal", "equal", "ascending", "special"])
def test_long_rows_of_a_cta_alone(values, dtype, device):
    """In the first rows, so that few are worked on: the others have no candidates."""
    logits = make_logits(values, 1, 20011, dtype).expand(ALONE, -1)
    lengths = torch.zeros(ALONE, dtype=I32)
    lengths[0], lengths[-1] = 20011, 9000
    check(logits, 2048, device, lengths=lengths)


def misleading(columns, lead):
    """fp32. What a sample reads, 128 groups of 16, is high and spread wide; there are fewer of them than wanted."""
    x = -torch.rand(columns) - 1
    inner = (lead + columns + 3) // 4 - 2
    first = (torch.arange(128) * (inner // 4 / 128)).int() * 16 + 4 - lead
    places = (first[:, None] + torch.arange(16)).flatten()
    x[places] = torch.rand(len(places)).mul(40).exp()
    return x


@pytest.mark.parametrize("rows", [1, ALONE])
def test_sample_that_misleads(rows, device):
    logits = poisoned(rows, 20012, F32, "cpu", lead=4, trail=4)  # rows begin at multiples of 16 bytes
    logits.copy_(misleading(20012, 0))
    lengths = torch.zeros(rows, dtype=I32)
    lengths[-1] = 20012
    check(logits, 1000, device, lengths=lengths)


@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 600])
@pytest.mark.parametrize("columns", [4000, 20000])
def test_ties_at_the_cut(columns, count, device):
    """So many scores, equal or neighbours, of which some are chosen: by comparing each with each while they are few."""
    logits = -torch.rand(2, columns) - 1
    for row, above in zip(logits, (1000 - count // 2, 1000 - (count - 1)), strict=True):
        places = torch.randperm(columns)
        row[places[:above]] = 3 + torch.rand(above)
        row[places[above:][:count]] = (torch.tensor(1.75).view(I32) + torch.arange(count) % 2).int().view(F32)
    check(logits, 1000, device)


# --- k and lengths


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", KS)
def test_lengths(k, dtype, device):
    lengths = torch.tensor([0, 1, k - 1, k, k + 1, 5000, INT_MIN, -1, INT_MAX, 5001]).int()
    check(make_logits("normal", len(lengths), 5000, dtype), k, device, lengths=lengths)


@pytest.mark.parametrize("columns", [0, 1, 2, 3, 7, 31, 32, 33, 513])
@pytest.mark.parametrize("dtype", DTYPES)
def test_few_columns(columns, dtype, device):
    logits = make_logits("special", 3, columns, dtype)
    for k in (1, 32, 600):
        check(logits, k, device)


@pytest.mark.parametrize("k", KS)
def test_every_k_on_long_rows(k, device):
    check(make_logits("few" if k % 3 == 1 else "normal", 2, 33000), k, device)


@pytest.mark.parametrize("dtype", DTYPES)
def test_row_starts(dtype, device):
    starts = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 699, 700, 701, -1, INT_MIN, INT_MAX, 300, 300, 300, 0]).int()
    lengths = torch.tensor([300] * 16 + [400, 401, INT_MAX, INT_MIN]).int()
    logits = make_logits("few", len(starts), 700, dtype)
    check(logits, 64, device, row_starts=starts)
    check(logits, 64, device, row_starts=starts, lengths=lengths)
    wide = torch.stack([lengths, starts, lengths], 1)
    assert wide[:, 0].stride() == (3,)
    check(logits, 64, device, row_starts=wide[:, 1], lengths=wide[:, 2])
    check(logits, 64, device, row_starts=starts[1:2].expand(20), lengths=lengths[:1].expand(20))


def test_what_is_no_candidate_is_poison(device):
    """Before the start and behind the length, within the columns."""
    logits = poisoned(4, 900, F32, "cpu")
    starts, lengths = torch.tensor([0, 5, 450, 893]).int(), torch.tensor([7, 600, 450, 7]).int()
    for r, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist(), strict=True)):
        logits[r, start : start + length] = torch.randn(length)
    result = topk(logits, 600, device, row_starts=starts, lengths=lengths)
    assert torch.equal((result >= 0).sum(1).int(), lengths)
    assert torch.equal(result, expected(logits, 600, lengths, starts))


# --- what positions become


def test_offsets(device):
    logits = make_logits("normal", 6, 500)
    offsets = torch.tensor([0, 1, -1000, 2**31 - 501, INT_MIN, 7]).int()
    check(logits, 100, device, offsets=offsets)
    check(logits, 100, device, offsets=offsets[:1].expand(6), lengths=torch.full((6,), 50).int())
    check(logits, 100, device, offsets=torch.stack([offsets, offsets], 1)[:, 1], row_starts=torch.arange(6).int())


@pytest.mark.parametrize("page_size", [1, 64, 53])
@pytest.mark.parametrize("rows, requests", [(3, 3), (6, 2), (4, 1)])
def test_block_table(page_size, rows, requests, device):
    columns = 1000
    pages = -(-columns // page_size)
    logits = make_logits("normal", rows, columns)
    table = torch.randperm(requests * pages).int().view(requests, pages) * 3
    lengths = torch.tensor([columns, 137, 0, 999, 64, 65][:rows]).int()
    check(logits, 200, device, block_table=table, page_size=page_size)
    check(logits, 200, device, block_table=table, page_size=page_size, lengths=lengths)
    starts = torch.full((rows,), 11).int()
    check(logits, 200, device, block_table=table, page_size=page_size, lengths=lengths, row_starts=starts)


def test_block_table_with_strides(device):
    logits, table = make_logits("normal", 4, 300), torch.randperm(4 * 30).int().view(30, 4)
    check(logits, 64, device, block_table=table.T, page_size=10)
    check(logits, 64, device, block_table=table.T[::2, ::2], page_size=25)
    check(logits, 64, device, block_table=table.T[:1].expand(2, -1), page_size=10)


def test_block_table_that_is_short(device):
    """A position without a page is no candidate, although it has the best score."""
    logits = make_logits("ascending", 2, 400)
    for pages in (0, 1, 5):
        table = torch.arange(2 * pages).int().view(2, pages)
        result = topk(logits, 100, device, block_table=table, page_size=16)
        assert torch.equal(result, expected(logits, 100, block_table=table, page_size=16))
        assert int((result >= 0).sum()) == 2 * min(100, 16 * pages)


def test_pages_that_are_none(device):
    logits = make_logits("normal", 1, 60)
    table = torch.tensor([[3, -1, INT_MAX, INT_MIN, 2**31 // 10 - 1, 2**31 // 10]]).int()
    check(logits, 60, device, block_table=table, page_size=10)
    check(logits, 60, device, block_table=torch.tensor([[5, 6]]).int(), page_size=INT_MAX)


# --- strides


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lead", range(9))
def test_rows_that_begin_anywhere(lead, dtype, device):
    """At every distance from a multiple of 16 bytes, with every length around one."""
    logits = make_logits("few", 17, 600 + lead, dtype, lead=lead, trail=lead % 3)
    lengths = torch.arange(590, 607).int()
    check(logits, 100, device, lengths=lengths)
    check(logits[::3], 100, device)


def test_strided_rows_and_output(device):
    logits = make_logits("normal", 1, 900)
    check(logits.expand(5, -1), 77, device)
    out = torch.full((10, 100), GARBAGE, dtype=I32, device=device)
    view = out[1::2, 3:80]
    assert dsa_ext.topk_indices(on(device, logits).expand(5, -1), 77, out=view) is view
    assert torch.equal(view.cpu(), expected(logits, 77).expand(5, -1))
    out[1::2, 3:80] = GARBAGE
    assert bool((out == GARBAGE).all())


def test_windows_of_positions(device):
    """Longer than the bitmap that puts positions in order; the best stand around its end."""
    logits = make_logits("normal", 1, 140000)
    logits[0, 130000:132500] += 3
    check(logits, 2048, device)


@pytest.mark.parametrize("rows", [0, 3])
def test_empty(rows, device):
    logits = torch.empty(rows, 0, device=device)
    result = dsa_ext.topk_indices(logits, 5)
    assert result.shape == (rows, 5) and result.dtype == I32 and bool((result == -1).all())
    table = torch.empty(rows, 0, dtype=I32, device=device)
    assert bool((dsa_ext.topk_indices(logits, 5, block_table=table, page_size=4) == -1).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_cpu_dtypes(dtype):
    logits = torch.randn(3, 300, dtype=torch.float64).to(dtype)
    assert torch.equal(dsa_ext.topk_indices(logits, 50), expected(logits, 50))
