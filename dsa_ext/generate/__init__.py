"""Text from a converted checkpoint: `python -m dsa_ext.generate`, or from Python

generator = Generator(decoder, max_context=16384)
answers = generator.generate([[1, 17, 4], [1, 8]], max_new_tokens=100, stop={2})
"""

from .generator import Generator
from .sample import choose

__all__ = ["Generator", "choose"]
