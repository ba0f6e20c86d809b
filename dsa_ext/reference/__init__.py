"""The package's functions in plain torch, for any float dtype and device: what the tests compare the kernels with."""

from .attention import sparse_mla_fwd

__all__ = ["sparse_mla_fwd"]
