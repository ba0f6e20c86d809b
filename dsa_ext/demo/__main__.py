"""See the package."""

import argparse
import time
from pathlib import Path

import torch

import dsa_ext

from . import measure, report
from .text import make_text

TOKENS = 4096  # the most that topk can take, so that it can take every token


def device() -> tuple[str, str]:
    """Where to run, in torch's words and in a person's."""
    if torch.cuda.is_available():
        major = torch.cuda.get_device_capability()[0]
        if any(dsa_ext.build_info()["paths"]["sparse_mla_fwd"].get(f"sm_{major}0", {}).values()):
            return "cuda", torch.cuda.get_device_name()
    return "cpu", "CPU (the reference, made to be read, not to be fast)"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dsa_ext.demo", description=dsa_ext.demo.__doc__)
    parser.add_argument(
        "--png", type=Path, default=Path("dsa_demo.png"), help="where to draw it (default: %(default)s)"
    )
    options = parser.parse_args()
    start = time.perf_counter()
    kind, where = device()
    with torch.no_grad():
        result = measure.run(make_text(TOKENS), kind)
    print(report.table(result))
    print(f"\n{where}, {time.perf_counter() - start:.0f} s")
    try:
        report.draw(result, options.png, where.partition(" (")[0])
    except ImportError:
        print("no picture: it needs matplotlib (pip install 'dsa_ext[bench]')")
    else:
        print(f"picture: {options.png}")


if __name__ == "__main__":
    main()
