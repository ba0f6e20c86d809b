"""The tests' inputs and their oracle, for the benchmarks: rows are timed on what the tests generate, after a check of
the result by what the tests check."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# At the end: an installed dsa_ext goes before the checkout's.
sys.path += [str(ROOT), str(ROOT / "tests")]

from cases import SparseMlaFwdCase, SparseMlaFwdInputs, make_inputs  # noqa: E402
from decode_cases import DecodeCase, DecodeInputs, random_cache  # noqa: E402
from decode_oracle import verify as verify_decode  # noqa: E402
from logits_cases import PagedInputs, RaggedInputs, masked_logits  # noqa: E402
from logits_cases import verify as verify_logits  # noqa: E402
from oracle import cosine_difference, verify  # noqa: E402

__all__ = [
    "ROOT",
    "DecodeCase",
    "DecodeInputs",
    "PagedInputs",
    "RaggedInputs",
    "SparseMlaFwdCase",
    "SparseMlaFwdInputs",
    "cosine_difference",
    "make_inputs",
    "masked_logits",
    "random_cache",
    "verify",
    "verify_decode",
    "verify_logits",
]
