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
)


def reason(site: Site) -> str | None:
    return next((s.reason for s in SURVIVORS if s.fits(site)), None)
