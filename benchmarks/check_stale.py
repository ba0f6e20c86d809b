"""Lists stored rows whose op has changed since they were measured: the hash of the sources that it is built from
differs from the checkout's. For information: the exit status is always 0."""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from build_tools.source_hash import source_hashes as current_hashes  # noqa: E402

__all__ = ["current_hashes", "stale_rows"]


def stale_rows(result: dict[str, Any], current: dict[str, str]) -> list[dict[str, Any]]:
    """The rows of a stored result whose op's sources are not the ones that it was measured with."""
    measured = result["run"]["source_hash"]
    return [row for row in result["rows"] if any(measured.get(op) != current.get(op) for op in _ops(row))]


def _ops(row: dict[str, Any]) -> list[str]:
    """That it has timed."""
    return row.get("ops", [row["op"]])


def report(results: list[Path], current: dict[str, str]) -> list[str]:
    lines = []
    for path in results:
        result = json.loads(path.read_text())
        stale = stale_rows(result, current)
        run, total = result["run"], len(result["rows"])
        lines.append(f"{path.name}: {len(stale)} of {total} rows are stale (measured at commit {run['commit']})")
        for row in stale:
            for op in _ops(row):
                was, now = run["source_hash"].get(op), current.get(op)
                if was != now:
                    lines.append(f"  {row['row']}: sources of {op} were {was}, are {now}")
    return lines or ["nothing is stored under benchmarks/results"]


if __name__ == "__main__":
    print("\n".join(report(sorted((ROOT / "benchmarks/results").glob("*.json")), current_hashes())))
