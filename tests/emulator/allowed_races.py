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
    # Copies of paged keys, and of Q.
    *(
        AllowedRace(
            copy,
            f"csrc/indexer_logits/sm90/consumer.cuh:163 < csrc/indexer_logits/sm90/consumer.cuh:{product} <",
            "Where a consumer has no step, or none any more, a product is made of whatever is in the first stage and "
            "the first slab, and nobody looks at it: a branch around it would make the compiler serialise all. "
            "That real steps wait for their operands is left to the late schedules, whose products then read NaN.",
        )
        for copy in ("csrc/indexer_logits/sm90/loaders.cuh:123 <", "csrc/indexer_logits/sm90/producer.cuh:103 <")
        for product in (80, 84)
    ),
    AllowedRace(
        "csrc/topk/collect.cuh:134 <",
        "csrc/topk/collect.cuh:129 <",
        "collect_in_rounds reads full_in_round after a barrier, to compare it with its round's number, while a warp "
        "that is ahead may write a later one. Where it is equal all are about to meet in keep_best, and nobody is "
        "ahead; where it is not, the later number is not equal either. One aligned word, read once.",
    ),
)
