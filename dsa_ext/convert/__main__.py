"""`python -m dsa_ext.convert`: the same as `dsa-convert`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
