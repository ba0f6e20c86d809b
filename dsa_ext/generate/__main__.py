"""`python -m dsa_ext.generate`, or under torchrun for several ranks."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
