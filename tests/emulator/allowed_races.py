"""Races on shared memory that the kernels have and that change no result. To be reviewed like code: an entry is a
promise about what every interleaving gives, and compilers and hardware may be assumed to tear no aligned word."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AllowedRace:
    """Texts in the places in the sources of two accesses, whichever comes first."""

    one: str
    other: str
    reason: str


ALLOWED = (
    AllowedRace(
        "csrc/topk/collect.cuh:134 <",
        "csrc/topk/collect.cuh:129 <",
        "collect_in_rounds reads full_in_round after a barrier, to compare it with its round's number, while a warp "
        "that is ahead may write a later one. Where it is equal all are about to meet in keep_best, and nobody is "
        "ahead; where it is not, the later number is not equal either. One aligned word, read once.",
    ),
)
