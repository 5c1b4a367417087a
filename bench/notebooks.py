"""Seconds and peak memory of every notebook, each in its own process. A lesson should stay under 60 s and 2 GB.

    python bench/notebooks.py [--quick] [--json FILE]
"""
import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS, GIGABYTES = 60, 2


def run(path):
    "Run one notebook: seconds, peak resident memory in GB, exit status"
    command = [str(Path(sys.executable).parent / "nbdev-test"), "--n-workers", "0", str(path)]
    start = time.perf_counter()
    pid = os.spawnve(os.P_NOWAIT, command[0], command, os.environ | {"MPLBACKEND": "agg"})
    _, status, usage = os.wait4(pid, 0)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kB elsewhere
    return time.perf_counter() - start, usage.ru_maxrss * unit / 1e9, os.waitstatus_to_exitcode(status)


def measure(path, repeats):
    "Median seconds and largest memory of a few runs"
    runs = [run(path) for _ in range(repeats)]
    seconds, memory, codes = zip(*runs)
    return dict(notebook=path.relative_to(ROOT / "nbs").as_posix(), seconds=round(statistics.median(seconds), 2),
                peak_gb=round(max(memory), 2), ok=not any(codes))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="not used: lessons run on the small Sun")
    parser.add_argument("--quick", action="store_true", help="one run each instead of three")
    parser.add_argument("--json", metavar="FILE", help="write the figures")
    args = parser.parse_args()
    os.chdir(ROOT)

    rows = []
    print(f"{'notebook':44} {'seconds':>8} {'peak GB':>8}")
    for path in sorted((ROOT / "nbs").rglob("*.ipynb")):
        if any(part[0] in "._" for part in path.relative_to(ROOT).parts):
            continue
        rows.append(row := measure(path, 1 if args.quick else 3))
        marks = [] if row["ok"] else ["FAILED"]
        marks += ["over time"] * (row["seconds"] > SECONDS) + ["over memory"] * (row["peak_gb"] > GIGABYTES)
        print(f"{row['notebook']:44} {row['seconds']:8.1f} {row['peak_gb']:8.2f}  {', '.join(marks)}".rstrip(), flush=True)
    print(f"{'all':44} {sum(r['seconds'] for r in rows):8.1f} {max(r['peak_gb'] for r in rows):8.2f}")
    if args.json:
        Path(args.json).write_text(json.dumps(dict(cpus=os.cpu_count(), notebooks=rows), indent=1) + "\n")
    sys.exit(not all(r["ok"] for r in rows))


if __name__ == "__main__":
    main()
