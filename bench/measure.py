"""What the benchmarks share: arguments, the median of repeated timings, tables, JSON."""
import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def arguments(doc, **extra):
    "Parsed command line: --data, --quick, --json, and what `extra` adds (name=dict for add_argument)"
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER", help="real observations (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and smaller sizes: to see that it runs, not to quote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures")
    for name, options in extra.items():
        parser.add_argument(f"--{name}", **options)
    args = parser.parse_args()
    if not args.data.is_dir():
        parser.error(f"--data {args.data}: no such folder; name the folder of real observations")
    return args


def median_seconds(repeats, **functions):
    "Median seconds of each function, run in turn so that all meet the same moods of the machine"
    times = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def report(args, title, rows):
    "Print rows (dicts with the same keys) as a table, and write it, after those before it, where --json says"
    print(f"\n{title}\n{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n")
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(rows[0], *cells)]
    for line in [list(rows[0]), *cells]:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths))).rstrip())
    args.tables = [*getattr(args, "tables", []), dict(title=title, cpus=os.cpu_count(), rows=rows)]
    if args.json:
        args.json.write_text(json.dumps(args.tables, indent=1) + "\n")
