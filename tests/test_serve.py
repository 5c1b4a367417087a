"""The API: answers as the engine's, everything hostile refused with a remedy, nothing stored, nothing of this machine told."""
import asyncio
import io
import json
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun
from search_sdo.search.engine import SearchEngine
from search_sdo.search.serve import HEADERS, MOST, Guards, Served, Together, create_app, docs_html, pair, read_box, read_k

SIZE, TILE = 128, 16


def run_alone(work):
    "`asyncio.run` in a thread of its own: a browser of other tests may have a loop running in this one"
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()



@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    import torch
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder(make_backbone(widths=(8, 16), stem=2), size=TILE, unit="DN/s")
    frames = SmallSun(seed=2).frames(12, cadence="5h", size=SIZE)
    for frame in frames: frame.meta.pop("b0", None)
    package = Package.build(frames, tmp_path_factory.mktemp("serve") / "package", size=SIZE)
    return SearchEngine.build(package, encoder, package.path.parent / "engine")


@pytest.fixture(scope="module")
def client(engine):
    with TestClient(create_app(engine), raise_server_exceptions=False) as client:
        yield client


def picture(size=(64, 64), kind="PNG", seed=0):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, size[::-1], dtype=np.uint8)).save(out, kind)
    return out.getvalue()


def refused(response, status, *words):
    "A clear refusal: the status, JSON with error and remedy, the words in it"
    assert response.status_code == status, response.text
    told = response.json()
    assert set(told) == {"error", "remedy"} and told["remedy"] and all(word in json.dumps(told) for word in words), told


def send(client, data, name="x.png", **fields):
    return client.post("/search", files={"file": (name, data)}, data=fields)


def alone(engine, n, **how):
    "The engine's answer to the stored vector of a tile, asked by nobody else"
    return engine.search(n, **how).table


# ---- answers


def test_search_is_the_engines_search(client, engine):
    for n, k, more in ((20, 5, {}), (100, 12, dict(spread="none")), (300, 3, dict(exclude_within="8h")), (40, 7, dict(after=str(engine.tiles.table.time.median())))):
        sent = client.get("/search", params=dict(tile=n, k=k) | more).json()["hits"]
        more = {name: None if value == "none" else value for name, value in more.items()}
        expected = alone(engine, n, k=k, **more)
        assert [hit["tile"] for hit in sent] == expected.tile.tolist()
        np.testing.assert_allclose([hit["similarity"] for hit in sent], expected.similarity, atol=1e-5)
        np.testing.assert_allclose([hit["similarity"] for hit in sent], engine.search(n, k=k, **more).table.similarity, atol=2e-3)     # vectors are stored as float16
        assert [pd.Timestamp(hit["time"]) for hit in sent] == expected.time.tolist()


def test_a_box_on_a_frame_is_the_engines_box(client, engine):
    sent = client.post("/search", json=dict(frame=3, box=[40, 40, 60, 60], k=4)).json()["hits"]
    assert [hit["tile"] for hit in sent] == engine.search(engine.package.frame(3), box=(40, 40, 60, 60), k=4).table.tile.tolist()
    assert client.post("/search", json=dict(tile=20, k=2)).json() == client.get("/search?tile=20&k=2").json()


def test_an_upload_is_searched(client):
    for kind in ("PNG", "JPEG", "JPEG2000"):
        found = send(client, picture(kind=kind), f"x.{kind}", k="3").json()
        assert len(found["hits"]) == 3 and found["query"] == f"x.{kind}"


def test_pictures_and_numbers(client, engine):
    for path, px in (("/tiles/7.png", 128), ("/tiles/7.png?px=16", 16), ("/frames/2.png?px=64", 64)):
        answer = client.get(path)
        assert answer.headers["content-type"] == "image/png" and Image.open(io.BytesIO(answer.content)).size == (px, px)
    tile = client.get("/tiles/7").json()
    assert tile["frame"] == engine.tiles.table.frame[7] and pd.Timestamp(tile["time"]) == engine.tiles.table.time[7]
    assert client.get("/engine").json()["tiles"] == len(engine) and client.get("/health").json() == dict(status="ok")
    assert [f["frame"] for f in client.get("/frames?skip=2&limit=3").json()] == [2, 3, 4]


def test_openapi_and_a_page_that_loads_nothing(client):
    description = client.get("/openapi.json").json()
    assert {"/search", "/tiles/{n}", "/tiles/{n}.png", "/frames/{n}.png", "/engine", "/health"} <= set(description["paths"])
    assert {p["name"] for p in description["paths"]["/search"]["get"]["parameters"]} >= {"tile", "k", "after", "before", "channel", "spread"}
    page = client.get("/docs").text
    assert page == client.get("/").text and "GET /search" in page
    assert "<script" not in page and "http://" not in page and "https://" not in page and "src=" not in page


# ---- what is refused


@pytest.mark.parametrize("query, status, words", [
    ("tile=-1", 422, ("tile",)), ("tile=999999999", 400, ("no such tile",)), ("tile=abc", 422, ("tile",)), ("tile=1e3", 422, ("tile",)), ("", 422, ("tile",)),
    ("tile=1&k=0", 422, ("k",)), (f"tile=1&k={MOST + 1}", 422, ("k",)), ("tile=1&k=99999999999999999999", 422, ("k",)),
    ("tile=1&after=tuesday", 400, ("not a date",)), ("tile=1&channel=193", 400, ("not in this engine",)), ("tile=1&channel=../../etc", 400, ()),
    ("tile=1&where=__import__('os')", 400, ("no filter",)), ("tile=1&box=1,2,3,4", 400, ("no filter",)), ("tile=1&spread=banana", 400, ()), ("tile=1&query=/etc/passwd", 400, ("no filter",)),
])
def test_bad_questions(client, query, status, words):
    refused(client.get(f"/search?{query}"), status, *words)


@pytest.mark.parametrize("body", [b"", b"[1]", b"null", b"{", b"[" * 100_000, b'{"frame": 0}', b'{"frame": "0", "box": [1,2,3,4]}', b'{"frame": 0, "box": [1,2]}', b'{"frame": 0, "box": [NaN,0,1,1]}',
                                  b'{"frame": 0, "box": {"a": 1}}', b'{"frame": 99, "box": [1,2,30,40]}', b'{"frame": 0, "box": [0,0,1e9,1e9]}', b'{"frame": 0, "box": [0,0,128,128]}', b'{"tile": true}', b'{"tile": 5, "k": 1e999}',
                                  b'{"tile": 5, "k": "x"}', b'{"tile": 5, "after": {"a": 1}}', b'\xff\xfe', b'{"tile": 123456789}', b'{"frame": 0, "box": [0,0,2,2], "path": "/etc/passwd"}'])
def test_bad_bodies(client, body):
    refused(client.post("/search", content=body, headers={"content-type": "application/json"}), 400)


def test_other_contents_and_forms(client):
    refused(client.post("/search", content=b"a", headers={"content-type": "text/plain"}), 400, "JSON")
    refused(client.post("/search", content=b"a", headers={"content-type": "multipart/form-data"}), 400, "form")
    refused(client.post("/search", content=b"--x\r\ngarbage", headers={"content-type": "multipart/form-data; boundary=x"}), 400)
    refused(client.post("/search", data=dict(k="3"), files=[("a", ("a.png", picture())), ("b", ("b.png", picture()))]), 400, "form")
    refused(client.post("/search", data={f"f{i}": "1" for i in range(50)}, files={"file": ("a.png", picture())}), 400, "form")


def bomb(width, height):
    "A PNG of a few kB that unfolds to width x height zeros"
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = zlib.compressobj(9)
    data = rows.compress(bytes(min(height * (width // 8 + 2), 20_000_000))) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("data, words", [
    (b"", ("empty",)), (b"GIF89a" + bytes(100), ("FITS",)), (b"%PDF-1.7", ()), (b"<svg onload=alert(1)>", ()), (b"\x80\x04\x95pickle", ()), (b"\x1f\x8b\x08" + bytes(50), ()),
    (picture()[:200], ()), (picture(kind="JPEG")[:100], ()), (bomb(10_000, 10_000), ("10,000",)), (bomb(60_000, 60_000), ()), (bomb(2**31 - 1, 2**31 - 1), ()),
    (b"SIMPLE  =                    T" + bytes(3000), ()), (b"SIMPLE  =                    T".ljust(80) + b"NAXIS   =                    2".ljust(80) + b"NAXIS1  =                99999".ljust(80)
     + b"NAXIS2  =                99999".ljust(80) + b"END".ljust(2560), ()), (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60), ()),
])
def test_hostile_uploads(client, data, words):
    refused(send(client, data), 400, *words)


def test_a_real_picture_of_ten_thousand_px_is_refused(client):
    refused(send(client, picture((10_000, 10_000), "JPEG")), 400, "10,000 x 10,000")


@pytest.mark.parametrize("name", ["../../etc/passwd.png", "..\\..\\x.png", "/etc/passwd", "<img src=x onerror=alert(1)>.png", "a\0b.png", "x" * 500 + ".png", "\u202egnp.exe", "con.png", "x.pkl"])
def test_names_are_never_paths(client, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = send(client, picture(), name, k="2")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    refused(send(client, picture(), "x" * 50_000 + ".png"), 400, "form")
    assert "/" not in answer.json()["query"] and "\\" not in answer.json()["query"] and len(answer.json()["query"]) <= 80
    assert list(tmp_path.iterdir()) == []


def test_oversized_uploads_are_refused_before_they_are_read(engine):
    with TestClient(create_app(engine, most=100_000)) as client:
        refused(client.post("/search", content=b"x" * 1_200_000, headers={"content-type": "multipart/form-data; boundary=x"}), 413, "larger")
        refused(client.post("/search", content=(b"x" * 65_536 for _ in range(40)), headers={"content-type": "multipart/form-data; boundary=x"}), 413, "larger")     # length not announced


def test_guards_stop_reading():
    "Of an endless body no more than the limit is taken in"
    taken, sent = 0, []
    async def app(scope, receive, send):
        while (await receive()).get("more_body"): pass
    async def receive():
        nonlocal taken
        taken += 1000
        return dict(type="http.request", body=bytes(1000), more_body=True)
    async def send_(message): sent.append(message)
    run_alone(Guards(app, most=10_000)(dict(type="http", headers=[]), receive, send_))
    assert sent[0]["status"] == 413 and taken <= 11_000
    for length in (b"10001", b"-1", b"abc", b"1" * 400):
        sent.clear()
        run_alone(Guards(app, most=10_000)(dict(type="http", headers=[(b"content-length", length)]), receive, send_))
        assert sent[0]["status"] == 413


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/tiles/../engine.json", "/tiles/%2e%2e%2fengine.json", "/engine.json", "/static/x", "/tiles/1.png/..", "/frames/..%2f..%2fetc%2fpasswd.png", "/tiles/00000000000000000000000000000000000001e9"])
def test_nothing_else_can_be_read(client, path):
    answer = client.get(path)
    assert answer.status_code in (404, 422) and set(answer.json()) == {"error", "remedy"}


@pytest.mark.parametrize("method", ["put", "delete", "patch"])
def test_nothing_can_be_changed(client, method):
    assert getattr(client, method)("/search").status_code == 405


def test_tiles_and_frames_that_are_not_there(client, engine):
    for path in (f"/tiles/{len(engine)}", f"/tiles/{10**30}", f"/frames/{len(engine.package)}.png", f"/tiles/{len(engine)}.png"): refused(client.get(path), 404)
    for path in ("/tiles/-1", "/tiles/1.png?px=100000", "/tiles/1.png?px=0", "/frames/0.png?px=1e9"): refused(client.get(path), 422)


def test_headers_and_no_cors(client, engine):
    answer = client.get("/engine", headers={"Origin": "https://evil.example"})
    assert all(answer.headers[name.decode()] == value.decode() for name, value in HEADERS.items()) and "access-control-allow-origin" not in answer.headers
    with TestClient(create_app(engine, cors=["https://friend.example"])) as friendly:
        ask = lambda origin: friendly.get("/engine", headers={"Origin": origin}).headers.get("access-control-allow-origin")
        assert ask("https://friend.example") == "https://friend.example" and ask("https://evil.example") is None


def test_names_are_escaped_in_pages():
    page = docs_html(dict(paths={"/<script>": dict(get=dict(description="<b>", parameters=[dict(name='"><script>', description="<i>")]))}), {"<u>": "<script>alert(1)</script>"})
    assert "<script" not in page and "<b>" not in page and "<i>" not in page and "<u>" not in page


def test_errors_tell_no_paths_and_no_traces(engine, monkeypatch):
    app = create_app(engine)
    def broken(*args, **kw): raise RuntimeError(f"{engine.package.path}/secret")
    def unlucky(*args, **kw): raise ValueError(f"{engine.package.path}/frames.parquet: is gone; call somebody")
    with TestClient(app, raise_server_exceptions=False) as client:
        monkeypatch.setattr(app.state.engine, "search", broken)
        answer = client.get("/search?tile=3")
        refused(answer, 500, "broke") or None
        assert "secret" not in answer.text
        monkeypatch.setattr("search_sdo.search.serve.tile_png", unlucky)
        answer = client.get("/tiles/3.png")
        refused(answer, 400, "is gone", "call somebody")
        assert str(engine.package.path.parent) not in answer.text


def test_uploads_are_not_stored(engine, tmp_path, monkeypatch):
    "No file is opened for writing while an upload of 3 MB is answered"
    import builtins, tempfile
    opened, real = [], builtins.open
    def watch(file, mode="r", *args, **kw):
        if any(c in mode for c in "wax+"): opened.append(file)
        return real(file, mode, *args, **kw)
    with TestClient(create_app(engine)) as client:
        monkeypatch.setattr(builtins, "open", watch)
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda *a, **kw: opened.append("temporary"))
        assert send(client, picture((1800, 1800)), box="0,0,64,64").status_code == 200
    assert opened == []


# ---- many at once


def test_those_who_ask_together_get_what_they_would_get_alone(engine):
    rng, index = np.random.default_rng(0), engine.index
    together, vectors = Together(index, slack=8), np.nan_to_num(np.asarray(engine.embeddings.vectors, np.float32))
    good = np.flatnonzero(np.abs(vectors).sum(1) > 0)
    asked = [(vectors[rng.choice(good)], int(rng.integers(1, 20)), None if i % 5 == 0 else rng.random(len(vectors)) < rng.choice([.02, .55, .9, 1])) for i in range(120)]
    found, barrier = [None] * len(asked), threading.Barrier(12)
    def worker(w):
        barrier.wait()
        for i in range(w, len(asked), 12): found[i] = together.search(*asked[i])
    threads = [threading.Thread(target=worker, args=(w,)) for w in range(12)]
    for t in threads: t.start()
    for t in threads: t.join()
    for (vector, k, keep), (similarity, ids) in zip(asked, found):
        s, n = index.search(vector, k, keep)
        np.testing.assert_allclose(similarity, s, atol=1e-5)
        assert similarity.shape == s.shape and (keep is None or keep[ids[ids >= 0]].all())


def test_an_error_reaches_the_one_who_asked_and_nobody_is_lost():
    class Broken:
        dim = 4
        def search(self, queries, k, keep=None): raise RuntimeError("out of order")
        def __len__(self): return 3
    together = Together(Broken())
    with pytest.raises(RuntimeError, match="out of order"): together.search(np.ones(4), 2)
    assert together.waiting == []


def test_a_long_line_is_told_to_come_back(engine):
    app = create_app(engine, longest=0)
    with TestClient(app, raise_server_exceptions=False) as client:
        answer = client.get("/search?tile=3")
        refused(answer, 503, "second")
        assert answer.headers["retry-after"] == "1"


def test_many_clients_at_once_over_the_wire(engine):
    import httpx
    async def one(client, i): return (await client.get(f"/search?tile={i}&k=5")).json()
    async def all_of(url):
        async with httpx.AsyncClient(base_url=url, timeout=30, limits=httpx.Limits(max_connections=20)) as client: return await asyncio.gather(*(one(client, i) for i in range(100, 160)))
    with Served(engine) as server: found = run_alone(all_of(server.url))
    for i, answer in enumerate(found, start=100):
        if "hits" in answer: assert [hit["tile"] for hit in answer["hits"]] == alone(engine, i, k=5).tile.tolist()
        else: assert "nothing was measured" in answer["error"]


# ---- words of a request


def test_small_readers():
    assert read_k(None) == 12 and read_k("7") == 7 and read_box("1,2,3.5,4") == (1, 2, 3.5, 4) and read_box(None) is None and pair("lon", "-30,30") == (-30, 30)
    for bad in ("0", "101", "x", "1.5"): pytest.raises(ValueError, read_k, bad)
    for bad in ("1,2,3", "a,b,c,d", "nan,0,1,1", "inf,0,1,1", [1, 2], 7): pytest.raises((ValueError, TypeError), read_box, bad)
    for bad in ("3", "5,1", "nan,1", "a,b"): pytest.raises(ValueError, pair, "lon", bad)
