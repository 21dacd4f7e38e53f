"""Runs every benchmark, one after the other: `make bench`. Figures mean something on a quiet machine only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RUNS = (
    ("drain.py",),
    ("drain.py", "--delayed", "100000"),
    ("pickup.py",),
    ("idle.py",),
    ("mail.py",),
    ("lanes.py",),
    ("rate.py",),
    ("cost.py",),
    ("retention.py",),
    ("rest_drain.py",),
    ("pickup_polled.py",),
    ("recovery.py",),
    ("overview.py",),
    ("workers.py",),
)


def main() -> int:
    worst = 0
    for run in RUNS:
        print(f"\n== {' '.join(run)}", flush=True)
        worst = max(worst, subprocess.call([sys.executable, str(Path(__file__).parent / run[0]), *run[1:]]))
    return worst


if __name__ == "__main__":
    sys.exit(main())
