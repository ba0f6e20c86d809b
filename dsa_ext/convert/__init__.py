"""`dsa-convert`: a Hugging Face checkpoint of a DSA model to one safetensors file a rank. See docs/convert.md.

The standard library alone does it: no tensor is ever built, only bytes move.
"""

from .cli import main
from .errors import ConvertError

__all__ = ["ConvertError", "main"]
