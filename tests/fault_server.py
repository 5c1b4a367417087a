"""A local archive with faults, for tests and bench/fetch.py.

Any path that ends in a file's name is answered with a small FITS file whose content depends on that name only.
For each name there is a list of faults: what goes wrong the next times that it is asked for; one of `ALWAYS` never ends.
As a program, in a process of its own: python tests/fault_server.py --latency 0.05 --share 0.3 (prints its address)."""
import argparse
import asyncio
import hashlib
import random
import socket
import struct
import threading
import time
from functools import lru_cache

import numpy as np

ONCE = [500, 502, 503, "503 and wait", "429 and wait", "hang", "reset", "cut", "cut in the header", "wrong type", "html", "empty", "drip", "loop"]
ALWAYS = [404, 410]


@lru_cache(maxsize=None)
def fits_of(name, side=64):
    "A FITS file, bytes: one image, of values that follow from the name"
    cards = ["SIMPLE  =                    T", "BITPIX  =                  -32", "NAXIS   =                    2",
             f"NAXIS1  = {side:>20}", f"NAXIS2  = {side:>20}", f"ORIGIN  = '{name[-60:]}'", "END"]
    data = np.random.default_rng(list(name.encode())).random((side, side), np.float32).astype(">f4").tobytes()
    header = "".join(c.ljust(80) for c in cards).encode()
    return header.ljust(2880) + data + b"\0" * (-len(data) % 2880)


def sha256_of(name):
    return hashlib.sha256(fits_of(name)).hexdigest()


def chance(share=0.4, lost=0.0, kinds=ONCE):
    "A function: the faults of a name, one or two for that share of the names, and 404 for ever for the share `lost`"
    def faults(name):
        rng = random.Random(name)
        if rng.random() < lost:
            return [404]
        return rng.choices(kinds, k=rng.choice([1, 1, 2])) if rng.random() < share else []
    return faults


class FaultServer:
    "`with FaultServer({name: [fault, ...]}) as server:` serves at `server.url`; `server.asked` holds (seconds, name) of every request"

    def __init__(self, faults=None, latency=0.0):    # faults: a dict, or a function like `chance()`
        self.faults = faults if callable(faults) else lambda name: list((faults or {}).get(name, []))
        self.latency, self.asked, self.left = latency, [], {}
        self.loop = asyncio.new_event_loop()
        self.busy = self.most_busy = 0

    def __enter__(self):
        ready = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(ready,), daemon=True)
        self.thread.start()
        ready.wait()
        return self

    def run(self, ready):
        asyncio.set_event_loop(self.loop)
        self.server = self.loop.run_until_complete(asyncio.start_server(self.guest, "127.0.0.1", 0, backlog=256))
        self.url = f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
        ready.set()
        self.loop.run_forever()

    def __exit__(self, *error):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.server.close()

    def count(self, name):
        return sum(n == name for _, n in self.asked)

    async def guest(self, reader, writer):
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                method, path = request.decode("latin1").split()[:2]
                self.busy += 1
                self.most_busy = max(self.busy, self.most_busy)
                stay = await (self.head(path, writer) if method == "HEAD" else self.answer(path, writer))
                self.busy -= 1
                if not stay:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def head(self, path, writer):
        "What parfive asks first: the length"
        await asyncio.sleep(self.latency)
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(fits_of(path.rsplit('/', 1)[-1]))}\r\n\r\n".encode())
        return True

    async def answer(self, path, writer):
        "Send one answer; False if the line is to be closed"
        if path.startswith("/circle/"):
            return self.redirect(path, writer)
        name = path.rsplit("/", 1)[-1]
        self.asked.append((time.monotonic(), name))
        await asyncio.sleep(self.latency)
        queue = self.left.setdefault(name, self.faults(name))
        fault = None if not queue else queue[0] if queue[0] in ALWAYS else queue.pop(0)
        body, wait = fits_of(name), ""
        if fault == "loop":
            return self.redirect("/circle/" + name, writer)
        if fault == "hang":
            await asyncio.sleep(20)
            return False
        if fault == "reset":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + body[:3000])
            await asyncio.sleep(0.02)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if fault in ("429 and wait", "503 and wait"):
            wait = "Retry-After: 1\r\n"
        status = int(str(fault)[:3]) if str(fault)[:3].isdigit() else 200
        kind = dict(html="text/html").get(fault, "application/fits")
        if status != 200 or fault == "html":
            body = b"<!DOCTYPE html><html><body>The archive is being repaired.</body></html>"
        if fault == "wrong type":
            body, kind = b"\xff\xd8\xff\xe0 a small JPEG \xff\xd9", "image/jpeg"
        if fault == "empty":
            body = b""
        if fault == "cut in the header":  # the length is right, the file is not whole
            body = body[:2000]
        writer.write(f"HTTP/1.1 {status} {REASONS.get(status, 'OK')}\r\nContent-Type: {kind}\r\n{wait}Content-Length: {len(body)}\r\n\r\n".encode())
        if fault == "cut":
            writer.write(body[:5000])
            await writer.drain()
            return False
        if fault == "drip":
            for i in range(3):
                writer.write(body[i:i + 1])
                await asyncio.sleep(.3)
            writer.write(body[3:])
        else:
            writer.write(body)
        await writer.drain()
        return True


    def redirect(self, path, writer):
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: {path}\r\nContent-Length: 0\r\n\r\n".encode())
        return True


REASONS = {404: "Not Found", 410: "Gone", 429: "Too Many Requests", 500: "Internal Server Error", 502: "Bad Gateway", 503: "Service Unavailable"}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--share", type=float, default=0.0, help="of names that meet faults")
    parser.add_argument("--lost", type=float, default=0.0, help="share of names that the archive does not have")
    args = parser.parse_args()
    with FaultServer(chance(args.share, args.lost), args.latency) as server:
        print(server.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
