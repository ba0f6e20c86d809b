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
        source=r"indexer_logits/sm90/consumer\.cuh:162 |heads64/consumer\.cuh:100 |few_heads/consumer\.cuh:119 ",
    ),
    Survivor(
        "The copies of a stage are generic writes of other threads, and who reads it fences. Whether it does is "
        "checked for ordinary stores alone, not for cp.async.",
        instruction=r"fence\.proxy\.async",
        source=r"heads64/consumer\.cuh:92 |heads64/odd_consumer\.cuh:40 |few_heads/consumer\.cuh:103 ",
    ),
    Survivor(
        "Nothing reads or waits between this group and the next, which takes its products along.",
        instruction=r"wgmma\.commit_group",
        source=r"heads64/consumer\.cuh:104 |few_heads/consumer\.cuh:126 ",
    ),
    Survivor(
        "Only products have read the buffer, and the wait for them is one of the whole warp.",
        instruction=r"bar\.warp\.sync",
        source=r"heads64/consumer\.cuh:132 |few_heads/consumer\.cuh:106 ",
    ),
    Survivor(
        "All four warps' scores are complete here when one warp has waited for its own.",
        instruction=r"bar\.sync",
        source=r"heads64/even_consumer\.cuh:71 ",
    ),
    Survivor(
        "The last products are of nothing, and nobody reads them; that none may be under way at the end is not "
        "modelled.",
        instruction=r"wgmma\.wait_group",
        source=r"heads64/even_consumer\.cuh:58 ",
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
