"""Other packages' names on this package's functions: what was written for them runs by changing an import.

flash_mla: FlashMLA's sparse attention.
deep_gemm: DeepGEMM's logits of the lightning indexer.
"""

from . import deep_gemm, flash_mla

__all__ = ["deep_gemm", "flash_mla"]
