"""Fetching: a serial loop against `fetch_files`, over 50 ms of latency; and a thousand files through every fault.

    python bench/fetch.py

The server is tests/fault_server.py in a process of its own. Bar: at least 10 x the serial loop at 16 connections.
Then 1,000 files with faults at two in five of them, and `kill -9` twice: all delivered or listed, none corrupt,
the manifest equal to that of a run without faults."""
import gc
import hashlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
from measure import arguments, report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from fault_server import sha256_of  # noqa: E402

PROGRAM = ("import sys, pandas as pd; from search_sdo.packager.fetch import fetch_files; "
           "fetch_files(pd.read_pickle(sys.argv[1]), sys.argv[2], per_host=16, timeout=2, progress=False)")


@contextmanager
def archive(*options):
    "The address of a fault server in a process of its own"
    running = subprocess.Popen([sys.executable, ROOT / "tests/fault_server.py", *map(str, options)], stdout=subprocess.PIPE, text=True)
    try:
        yield running.stdout.readline().strip()
    finally:
        running.kill()
        running.wait()


def table_of(url, n):
    times = pd.date_range("2012-01-01", periods=n, freq="1h", unit="ns")
    names = [f"{t:%Y%m%d_%H%M%S}_aia_171.fits" for t in times]
    return pd.DataFrame(dict(time=times, channel="171", name=names, url=[f"{url}/{n}" for n in names], bytes=20e3))


def serial(table, folder):
    "What a first script does: one request after the other"
    import requests
    folder.mkdir()
    for name, url in zip(table.name, table.url):
        (folder / name).write_bytes(requests.get(url, timeout=60).content)


def threads(table, folder):
    "requests in 16 threads: no list, no checks, no manners; the floor for ours"
    import requests
    session = requests.Session()
    session.mount("http://", requests.adapters.HTTPAdapter(16, 16))
    folder.mkdir()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name, url: (folder / name).write_bytes(session.get(url, timeout=60).content), table.name, table.url))


def parfive_16(table, folder):
    "What sunpy fetches with"
    import parfive
    loader = parfive.Downloader(max_conn=16, progress=False)
    for name, url in zip(table.name, table.url):
        loader.enqueue_file(url, path=folder, filename=name)
    assert len(loader.download()) == len(table)


def ours(table, folder, connections):
    from search_sdo.packager.fetch import fetch_files
    assert fetch_files(table, folder, connections=connections, per_host=connections, progress=False).missing.empty


def seconds(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def compare_speed(work, repeats, n):
    rows = []
    with archive("--latency", 0.05) as url:
        table = table_of(url, n)
        methods = {"serial loop (requests)": serial, "16 threads (requests), nothing else": threads, "parfive, 16 connections": parfive_16}
        methods |= {f"fetch_files, {k} connections": lambda t, f, k=k: ours(t, f, k) for k in (4, 8, 16)}
        times = {m: [] for m in methods}
        for i in range(repeats):
            for j, (name, method) in enumerate(methods.items()):
                times[name].append(seconds(method, table, work / f"{i}-{j}"))
                gc.collect()  # parfive leaves an event loop, which only the main thread may clear away
    base = statistics.median(times["serial loop (requests)"])
    for name, t in times.items():
        rows.append(dict(method=name, seconds=statistics.median(t), files_per_s=n / statistics.median(t), times_serial=base / statistics.median(t)))
    return rows


def run_until(n, table, folder):
    "Fetch in another process, killed with SIGKILL once n files are there; how many were there then"
    running = subprocess.Popen([sys.executable, "-c", PROGRAM, table, folder], cwd=ROOT)
    while running.poll() is None and len(list(folder.glob("*.fits"))) < n:
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    return len(list(folder.glob("*.fits")))


def through_faults(work, n):
    rows, start = [], time.perf_counter()
    with archive("--latency", 0.02, "--share", 0.4, "--lost", 0.01) as url:
        table = table_of(url, n)
        table.to_pickle(work / "table")
        killed = [run_until(k, work / "table", work / "terrible") for k in (n // 4, n // 2)]
        subprocess.run([sys.executable, "-c", PROGRAM, work / "table", work / "terrible"], cwd=ROOT, check=True)
    terrible = time.perf_counter() - start
    with archive("--lost", 0.01) as smooth_url:
        table_of(smooth_url, n).to_pickle(work / "table")
        subprocess.run([sys.executable, "-c", PROGRAM, work / "table", work / "smooth"], cwd=ROOT, check=True)
    text = [(work / f / "manifest.csv").read_text() for f in ("terrible", "smooth")]
    manifest = pd.read_csv(work / "terrible/manifest.csv")
    done, missing = (manifest[manifest.status == s] for s in ("done", "missing"))
    corrupt = sum(hashlib.sha256((work / "terrible" / name).read_bytes()).hexdigest() != sha256_of(name) for name in done.name)
    verdict = lambda what, found, good: rows.append(dict(what=what, found=found, verdict="yes" if good else "NO"))
    verdict("killed with -9 when so many were there", f"{killed[0]} and {killed[1]}", killed[1] < n)
    verdict("all delivered or listed", f"{len(done)} and {len(missing)} of {n}", len(done) + len(missing) == len(manifest) == n)
    verdict("none corrupt", f"{corrupt} corrupt", corrupt == 0)
    verdict("nothing provisional left", f"{len(list((work / 'terrible').glob('.*part')))} files", not list((work / "terrible").glob(".*part")))
    verdict("manifest equal to the one without faults", "equal" if text[0].replace(url, smooth_url) == text[1] else "not equal", text[0].replace(url, smooth_url) == text[1])
    verdict("time, s", f"{terrible:.1f}", True)
    return rows


def main():
    args = arguments(__doc__)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        speed = compare_speed(work, *((1, 120) if args.quick else (3, 200)))
        faults = through_faults(work, 200 if args.quick else 1000)
    report(args, "Fetching over 50 ms of latency: median seconds", speed)
    args.json = args.json and args.json.with_name(args.json.stem + "_faults.json")
    report(args, "A thousand files (a fifth with --quick) through every fault", faults)


if __name__ == "__main__":
    main()
