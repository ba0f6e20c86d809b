"""Synchronisation whose removal no emulated run reports, and why that is so.

To be reviewed like code: an entry says that the emulator cannot see what the instruction is for, or that the
instruction is for the device's speed alone. It is never a way to make a score look better: what a test could show
wants a test, and what nothing needs is to be removed from the kernel."""

import re
from dataclasses import dataclass

from .control import Site


@dataclass(frozen=True)
class Survivor:
    """Patterns (re.search) for the kernel's name, the instruction, and its places in the sources."""

    reason: str
    kernel: str = ""
    instruction: str = ""
    source: str = ""

    def fits(self, site: Site) -> bool:
        pairs = ((self.kernel, site.kernel), (self.instruction, site.text), (self.source, site.source))
        return all(re.search(pattern, text) for pattern, text in pairs)


SURVIVORS = (
    Survivor(
        "Launches run one after another here: what the grid before wrote is always complete, and no grid waits for "
        "places on the device.",
        instruction=r"griddepcontrol\.",
    ),
    Survivor(
        "Execution is sequentially consistent here, and an mbarrier that is initialised is so for everybody.",
        instruction=r"fence\.mbarrier_init",
    ),
    Survivor(
        "The product overwrites accumulators that were not written since the last fence. That a fence also orders what "
        "has been read from registers is not modelled.",
        instruction=r"wgmma\.fence",
        source=r"indexer_logits/sm90/consumer\.cuh:215 ",
    ),
    Survivor(
        "Lets the fill warps begin when Q is there, which makes calls faster. Nothing that they do needs it.",
        instruction=r"mbarrier\.try_wait|bar\.sync",
        source=r"indexer_logits/sm90/(consumer\.cuh:90 |kernel\.cuh:82)",
    ),
    Survivor(
        "Serves instances with 8 and 16 heads, which read ranges to the end. The others have them in registers, and "
        "their lanes have met in shuffles since they read what is given back.",
        kernel=r"indexer_logits<\S+Config<(64|32), ",
        instruction=r"bar\.warp\.sync",
        source=r"indexer_logits/sm90/consumer\.cuh:235 < \S+/consumer\.cuh:104 ",
    ),
    Survivor(
        "Lanes have parted, and the arrival behind it is an aligned one. The emulator waits for them there; the device "
        "does so only while the compiler has them meet.",
        kernel="topk_kernel<.*true>|sm90::indexer_logits|sparse_mla_decode_heads64_team",
        instruction=r"bar\.warp\.sync",
        source=r"topk/team\.cuh:31 |indexer_logits/sm90/producer\.cuh:102 |decode/sm90/heads64\.cuh:154",
    ),
    Survivor(
        "PTX asks for none between products of one shape on the same accumulators. ptxas does, where a loop that waits "
        "comes between: it puts one there and says so (C7519).",
        instruction=r"wgmma\.fence",
        source=r"heads64/consumer\.cuh:105 |few_heads/consumer\.cuh:150 ",
    ),
    Survivor(
        "Serves d_qk 512, where the lanes that have read the valid bits have not met since. Elsewhere they have, or "
        "only products have read what is given back, and the wait for them is one of the whole warp.",
        instruction=r"bar\.warp\.sync",
        source=r"heads64/consumer\.cuh:137 ",
    ),
    Survivor(
        "Serves prefill. Decode's producer warps arrive for a right half when they have written the left one, too, and "
        "the wait for the right half comes at once.",
        kernel="sparse_mla_decode_heads64",
        instruction=r"mbarrier\.try_wait",
        source=r"heads64/even_consumer\.cuh:64 ",
    ),
    Survivor(
        "Serves 64 heads. For few, the other consumer's block or run comes before the next use, and the warp meets in "
        "it.",
        kernel="sparse_mla_decode_few_heads",
        instruction=r"bar\.warp\.sync",
        source=r"sparse_mla_decode/sm90/rows\.cuh:169 ",
    ),
    Survivor(
        "Serves prefill, bf16 caches and 8 heads of v4. Producers of other FP8 rows wait first for the last of these "
        "groups, RoPE's. They wait for the others, too: calls took 1 % longer without it, and a barrier that nobody "
        "waits for is an error to synccheck.",
        kernel="sparse_mla_decode_few_heads<.*Kv(V32|V4)",
        instruction=r"wgmma\.(commit|wait)_group|mbarrier\.try_wait",
        source=r"few_heads/consumer\.cuh:(191|197) |raw_producer\.cuh:132 ",
    ),
    Survivor(
        "Serves groups with codes, which lanes write themselves. The first of 8 heads of v4 is RoPE's tile alone, "
        "which is copied.",
        kernel="sparse_mla_decode_few_heads<.*KvV4",
        instruction=r"bar\.warp\.sync",
        source=r"sparse_mla_decode/sm90/raw_producer\.cuh:138 ",
    ),
    Survivor(
        "Serves caches with codes, whose tiles lanes write themselves. All of a bf16 cache is copied, copies arrive "
        "on their own, and the valid bits are the arriving lane's.",
        kernel="KvBf16",
        instruction=r"bar\.warp\.sync",
        source=r"sparse_mla_decode/sm90/producer\.cuh:164 ",
    ),
    Survivor(
        "PTX asks for a wait between two arrivals of a thread. What it waits for has happened: consumers waited for it "
        "before they told of their sums.",
        instruction=r"barrier\.cluster\.wait",
        source=r"sparse_mla_decode/sm90/team\.cuh:104 ",
    ),
    Survivor(
        "Serves the compiler, which moves no load over it.",
        kernel="sparse_mla_decode_heads64_team",
        instruction=r"bar\.warp\.sync",
        source=r"sparse_mla_decode/sm90/producer\.cuh:126 ",
    ),
    Survivor(
        "The barrier that follows is an aligned one: it waits for the warp's lanes here, where the device would do "
        "anything.",
        instruction=r"bar\.warp\.sync",
        source=r"decode/sm100/kernel\.cuh:(58|80)|sm100/pair/kernel\.cuh:(46|61)",
    ),
    Survivor(
        "It comes before a second use of the sums; this is the first.",
        kernel="plan_sparse_mla_decode",
        instruction="bar.sync",
        source=r"sparse_mla_decode/plan\.cu:29 < csrc/sparse_mla_decode/plan\.cu:53",
    ),
)


def reason(site: Site) -> str | None:
    return next((s.reason for s in SURVIVORS if s.fits(site)), None)
