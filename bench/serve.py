"""`search-sdo serve` under load: 50 clients at once for a minute on 100,000 real tiles, each asking the next question as soon as it has its answer.

The server is a process of its own, the clients are another. Two rows: as it serves (questions that come together are
searched together), and with every question searched alone, as the plain way would be. The bar: no error, p99 under 500 ms.
The engine is built from DATA/aia171 (2048 px, tiles 52 px apart) in a folder that --engine may name to keep it."""
import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import arguments, report

SERVER = """
import sys
from search_sdo.search import serve as s
if sys.argv[3] == "alone": s.Together = lambda index: index
s.serve(sys.argv[1], port=int(sys.argv[2]))
"""


def build(data, path, stride):
    "An engine over all frames of aia171; one that is there is used"
    from search_sdo.packager.package import Package
    from search_sdo.search.engine import SearchEngine
    if (path / "engine.json").exists():
        return SearchEngine.open(path)
    package = Package.build(sorted((data / "aia171").glob("*.jpg")), path.parent / "package", size=2048)
    return SearchEngine.build(package, "aia171", path, stride=stride)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as s:
        return s.getsockname()[1]


async def answer_to(reader, writer, path):
    "Status and body of one request over a line that stays open"
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


async def client(port, tiles, seed, until, times, errors):
    rng = np.random.default_rng(seed)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while time.monotonic() < until:
        tile, start = rng.choice(tiles), time.perf_counter()
        try:
            status, body = await asyncio.wait_for(answer_to(reader, writer, f"/search?tile={tile}&k=12"), 30)
            if status != 200 or len(json.loads(body)["hits"]) != 12:
                errors.append(status)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as e:
            errors.append(repr(e))
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        times.append(time.perf_counter() - start)
    writer.close()


async def load(port, tiles, clients, seconds):
    times, errors, until = [], [], time.monotonic() + seconds
    await asyncio.gather(*(client(port, tiles, i, until, times, errors) for i in range(clients)))
    return np.array(times) * 1000, errors


async def ready(port):
    for _ in range(600):
        try:
            return await answer_to(*await asyncio.open_connection("127.0.0.1", port), "/health")
        except OSError:
            await asyncio.sleep(.2)
    raise OSError("the server did not start")


def measure(way, engine, tiles, clients, seconds):
    port = free_port()
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(engine), str(port), way], env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        asyncio.run(ready(port))
        asyncio.run(load(port, tiles, clients, min(5, seconds)))      # warm
        times, errors = asyncio.run(load(port, tiles, clients, seconds))
    finally:
        server.terminate()
        server.wait()
    p50, p99 = np.percentile(times, [50, 99])
    return dict(way=way, clients=clients, seconds=float(seconds), requests=len(times), errors=len(errors), per_s=len(times) / seconds, p50_ms=float(p50), p99_ms=float(p99), max_ms=float(times.max()))


def main():
    args = arguments(__doc__, engine=dict(type=Path, metavar="FOLDER", help="where the engine is, or is to be built; without it, a folder that is removed"),
                     seconds=dict(type=float, default=60), clients=dict(type=int, default=50))
    with tempfile.TemporaryDirectory() as folder:
        path = args.engine or Path(folder) / "engine"
        engine = build(args.data, path, 128 if args.quick else 52)
        tiles = np.flatnonzero(np.isfinite(np.asarray(engine.embeddings.vectors[:, 0])))
        seconds = 5 if args.quick else args.seconds
        rows = [measure(way, path, tiles, args.clients, seconds) | dict(tiles=len(engine)) for way in ("together", "alone")]
    report(args, f"{args.clients} clients at once, {len(engine):,} tiles, k = 12", rows)


if __name__ == "__main__":
    main()
