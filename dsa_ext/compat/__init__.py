"""Other packages' names on this package's functions: what was written for them runs by changing an import.

flash_mla: FlashMLA's sparse attention.
"""

from . import flash_mla

__all__ = ["flash_mla"]
