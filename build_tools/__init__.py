"""What setup.py and the PEP 517 backend are made of: one idea a module, nothing here is installed."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
