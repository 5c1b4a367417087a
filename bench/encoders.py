"""Train the encoders that ship with the library, from real observations, on two cores in a night.

    python bench/encoders.py [--only NAME ...] [--data FOLDER] [--out FOLDER] [--quick] [--json FILE]

What each learns from and how is in `search_sdo.models.trained`. A run that was killed goes on. A finished encoder is put
into `search_sdo/models/trained/NAME`; measure it with `python bench/retrieval.py --card`, which also writes its card.
With --quick twenty steps each, and nothing is put anywhere.
"""
import time
from pathlib import Path

from measure import arguments, report

from search_sdo.models.trained import RUNS, ship, train_trained


def main():
    args = arguments(__doc__, only=dict(nargs="+", choices=list(RUNS), default=list(RUNS), help="encoders (default: all)"),
                     out=dict(type=Path, default=Path("encoders"), metavar="FOLDER", help="packages and runs (default: %(default)s)"))
    rows, out = [], args.out / "quick" if args.quick else args.out
    for name in args.only:
        start = time.perf_counter()
        encoder = train_trained(name, args.data, out / name, **dict(steps=20) if args.quick else {})
        if not args.quick:
            ship(name, out / name / "run")
        size = (out / name / "run/weights.safetensors").stat().st_size / 1e6
        rows.append(dict(encoder=name, numbers=encoder.dim, megabytes=size, minutes=(time.perf_counter() - start) / 60))
    report(args, "Encoders, trained in this run or earlier", rows)


if __name__ == "__main__":
    main()
