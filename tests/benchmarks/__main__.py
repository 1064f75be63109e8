"""``make bench``: every benchmark in a process of its own, so that none sees another's memory.

python -m tests.benchmarks [NAME …]        such as: python -m tests.benchmarks read ridge
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    there = {path.stem.removeprefix("bench_"): path for path in sorted(FOLDER.glob("bench_*.py"))}
    wanted = sys.argv[1:] or list(there)
    if unknown := [name for name in wanted if name not in there]:
        sys.exit(f"There is no benchmark {unknown[0]!r}; there are {', '.join(there)}.")
    failed = []
    for name in wanted:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, str(there[name])]).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
