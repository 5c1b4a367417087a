"""Archives on this machine that answer like the real ones, for tests without a network.

Each speaks the protocol that the client of the real archive uses; what is scripted is what the real one
does on a bad day. Fields and quirks: drms 0.9 (client.py, json.py), the Helioviewer API documentation,
sunpy/drms#56 and #60, sunpy/sunpy#3897."""
import contextlib
import io
import json
import re
import threading
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

import numpy as np
from astropy.io import fits
from PIL import Image

TAI = timedelta(seconds=35)            # TAI - UTC from July 2012 to June 2015
EPOCH = datetime(1977, 1, 1)           # of the slots of T_REC, in TAI


class Lookalike:
    "A local HTTP server; subclasses write `answer(path, query) -> (status, content type, bytes)`"

    def __init__(self):
        self.asked = []                # (path, query) of every request
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                parts = urlparse(self.path)
                query = {k: v[0] for k, v in parse_qs(parts.query).items()}
                outer.asked.append((parts.path, query))
                status, kind, body = outer.answer(parts.path, query)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def count(self, part):
        "How many requests had `part` in their path"
        return sum(part in path for path, _ in self.asked)


NOT_FOUND = 404, "text/html", b"<html>not here</html>"


def as_json(thing, status=200):
    return status, "application/json", json.dumps(thing).encode("latin1")


def disk_image(size=64, peak=1000.0):
    "A bright disk with a radius of 0.4 of the picture, float32"
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return np.where(np.hypot(x, y) < 0.4 * size, np.float32(peak), np.float32(1))


def sun_header(time, wavelength=171, size=64, content=None):
    "Header of an image of the Sun as JSOC writes it, radius 0.4 of the picture"
    h = fits.Header()
    h["TELESCOP"], h["INSTRUME"], h["WAVELNTH"] = "SDO/HMI" if content else "SDO/AIA", "HMI_FRONT2" if content else "AIA_3", 6173 if content else wavelength
    h["DATE-OBS"] = h["T_OBS"] = time.isoformat()
    h["WAVEUNIT"], h["BUNIT"], h["EXPTIME"] = "angstrom", "Gauss" if content else "DN", 2.0
    if content:
        h["CONTENT"] = content
    h["CTYPE1"], h["CTYPE2"], h["CUNIT1"], h["CUNIT2"] = "HPLN-TAN", "HPLT-TAN", "arcsec", "arcsec"
    h["CRPIX1"] = h["CRPIX2"] = (size + 1) / 2
    h["CRVAL1"] = h["CRVAL2"] = 0.0
    h["CDELT1"] = h["CDELT2"] = 976.0 / (0.4 * size)
    h["CROTA2"], h["RSUN_OBS"], h["DSUN_OBS"], h["CRLN_OBS"], h["CRLT_OBS"], h["RSUN_REF"] = 0.0, 976.0, 1.4713e11, 0.0, -3.0, 6.96e8
    return h


def fits_bytes(data, header):
    buffer = io.BytesIO()
    fits.PrimaryHDU(data, header).writeto(buffer)
    return buffer.getvalue()


SECONDS = dict(s=1, m=60, h=3600, d=86400)


def span(text):
    "Seconds of a DRMS time span, as in 1d or 21600s"
    number, unit = re.fullmatch(r"(\d+)([smhd])", text).groups()
    return int(number) * SECONDS[unit]


class LookalikeJSOC(Lookalike):
    """JSOC as drms sees it: jsoc_info, jsoc_fetch, checkAddress.sh, and the files it has exported.

    Every slot of `aia.lev1_euv_12s` (171, 193) and `hmi.M_720s` holds a record, but those in `missing`
    (UTC, start of the slot to the minute). `bad` are slots with a QUALITY that is not 0."""

    STEP = {"aia.lev1_euv_12s": 12, "aia.lev1_uv_24s": 24, "hmi.m_720s": 720, "hmi.ic_720s": 720, "hmi.m_45s": 45}
    SEGMENT = {"aia": "image", "hmi.m": "magnetogram", "hmi.ic": "continuum"}

    def __init__(self, missing=(), bad=(), polls=2, fail=0, busy=0, most=10, longest=None):
        super().__init__()
        self.missing, self.bad = set(missing), set(bad)
        self.polls = polls             # answers "not ready" before an export is ready
        self.fail = fail               # exports that end with status 4
        self.busy = busy               # requests refused because others of this user are pending (status 7)
        self.most = most               # OR-ed ranges before HTTP 500
        self.longest = longest         # records in one query before HTTP 500
        self.requests, self.exported = {}, {}

    @property
    def base(self):
        return self.url + "/cgi-bin/ajax/"

    def answer(self, path, query):
        if path.endswith("/checkAddress.sh"):
            return as_json(dict(status=2 if "@known" in query["address"].replace("%40", "@") else 4))
        if path.endswith("/jsoc_info"):
            return self.series(query) if query["op"] == "series_struct" else self.records(query)
        if path.endswith("/jsoc_fetch"):
            return self.request(query) if query["op"] == "exp_request" else self.status(query["requestid"])
        return (200, "application/octet-stream", self.exported[path]) if path in self.exported else NOT_FOUND

    def series(self, query):
        name = query["ds"].lower()
        if name not in self.STEP:
            return as_json(dict(status=1, error=f"Cannot find series {name}"))
        keys = ["T_REC", "WAVELNTH"] if name.startswith("aia") else ["T_REC", "CAMERA"]
        words = [("T_REC", "time"), ("T_OBS", "time"), ("QUALITY", "int"), ("WAVELNTH", "int"), ("CAMERA", "int")]
        return as_json(dict(status=0, note="look-alike", primekeys=keys, dbindex=keys, links=[], segments=[],
                            keywords=[dict(name=n, type=t, units="", note="") for n, t in words]))

    def select(self, ds):
        "Records of a record set: (series, segment, T_REC, T_OBS in UTC, wavelength, quality); None for a query that is too much"
        name, keys, segment = re.fullmatch(r"([\w.]+)((?:\[[^]]*\])+)(?:\{(\w+)\})?", ds).groups()
        keys = re.findall(r"\[([^]]*)\]", keys)
        assert name.lower() in self.STEP, f"series {name}"
        right = next(v for k, v in self.SEGMENT.items() if name.lower().startswith(k))
        assert segment in (None, right), f"{name} has no segment {segment}; JSOC would answer with status 4"
        ranges = keys[0].split(",")
        if len(ranges) > self.most:
            return None
        slots = sorted({slot for text in ranges for slot in self.slots(name.lower(), text)})
        if self.longest is not None and len(slots) > self.longest:
            return None
        waves = [int(w) for w in keys[1].split(",")] if name.startswith("aia") and len(keys) > 1 else [6173]
        found = []
        for slot in slots:
            utc = EPOCH + timedelta(seconds=slot * self.STEP[name.lower()]) - TAI
            minute = utc.replace(second=0, microsecond=0)
            if minute not in self.missing:
                found += [(name, right, slot, utc, w, 0x20000 if minute in self.bad else 0) for w in waves]
        return found

    def slots(self, name, text):
        start, length, skip = re.fullmatch(r"([^/@]+)(?:/(\w+))?(?:@(\w+))?", text).groups()
        if start.endswith("_TAI"):
            start = datetime.strptime(start, "%Y.%m.%d_%H:%M:%S_TAI")
        else:
            start = datetime.strptime(start, "%Y-%m-%dT%H:%M:%SZ") + TAI
        step, seconds = self.STEP[name], (start - EPOCH).total_seconds()
        first = round(seconds / step)  # a time is the slot that it is nearest to
        last = first + (1 if length is None else max(1, round(span(length) / step)))
        return range(first, last, max(1, span(skip) // step) if skip else 1)

    def name(self, record):
        series, _, slot, utc, wave, _ = record
        if series.startswith("aia"):
            return f"{series}[{utc:%Y-%m-%dT%H:%M:%SZ}][{wave}]"
        return f"{series}[{utc + TAI:%Y.%m.%d_%H:%M:%S_TAI}][1]"

    def records(self, query):
        found = self.select(query["ds"])
        if found is None:
            return 500, "text/html", b"<html>Internal Server Error</html>"
        if query["key"] == "**ALL**":
            heads = [sun_header(r[3], r[4], 64, None if r[0].startswith("aia") else "MAGNETOGRAM") for r in found]
            every = {k.replace("-", "__"): [str(h[k]) for h in heads] for k in (heads[0] if heads else ())}
            every["QUALITY"], every["DATE__OBS"], every["MPO_REC"] = ["0x00000000"] * len(found), [f"{r[3].isoformat()}Z" for r in found], ["nan"] * len(found)
            return as_json(dict(status=0, keywords=[dict(name=k, values=v) for k, v in every.items()], recinfo=[dict(name=self.name(r)) for r in found]))
        values = {"T_REC": [re.findall(r"\[([^]]*)\]", self.name(r))[0] for r in found],
                  "T_OBS": [f"{r[3]:%Y-%m-%dT%H:%M:%S}.34Z" if r[0].startswith("aia") else f"{r[3] + TAI:%Y.%m.%d_%H:%M:%S_TAI}" for r in found],
                  "QUALITY": [f"0x{r[5]:08x}" for r in found], "WAVELNTH": [str(r[4]) for r in found],
                  "*size*": ["11000000" for _ in found]}
        return as_json(dict(status=0, count=len(found), keywords=[dict(name=k, values=values[k]) for k in query["key"].split(",")],
                            recinfo=[dict(name=self.name(r)) for r in found]))

    def request(self, query):
        assert "@known" in query["notify"], "an export without a registered address"
        if self.busy:
            self.busy -= 1
            return as_json(dict(status=7, error=f"User {query['notify']} has 1 pending export requests"))
        found = self.select(query["ds"])
        if found is None:
            return 500, "text/html", b"<html>Internal Server Error</html>"
        if query["method"] == "url_quick":
            return as_json(dict(status=0, requestid="", method="url_quick", protocol="as-is", dir="", wait=0, data=[self.as_is(r) for r in found]))
        identity = f"JSOC_20261121_{len(self.requests):03d}"
        self.requests[identity] = dict(found=found, query=query, polls=self.polls, fail=self.fail > 0)
        self.fail -= 1
        return as_json(dict(status=2, requestid=identity, method=query["method"], protocol=query["protocol"], wait=0))

    def status(self, identity):
        job = self.requests[identity]
        job["polls"] -= 1
        if job["polls"] >= 0:
            return as_json(dict(status=6 if job["polls"] else 2, requestid=identity, wait=0))
        if job["fail"]:
            return as_json(dict(status=4, requestid=identity, error="Cant save new export-request hash."))
        folder = f"/SUM/{identity}/S00000"
        data = []
        for record in job["found"]:
            file = re.sub(r"[][:{}]+", ".", self.name(record)) + record[1] + ".fits"
            self.exported[f"{folder}/{file}"] = self.file(record, job["query"])
            data.append(dict(record=f"{self.name(record)}{{{record[1]}}}", filename=file))
        return as_json(dict(status=0, requestid=identity, method="url", protocol="fits", dir=folder, data=data, count=len(data), wait=0))

    def as_is(self, record):
        "A file as it lies in the store: RICE, and nothing but the image"
        path = f"/SUM/D{record[2]}/S{record[4]}/{record[1]}.fits"
        buffer = io.BytesIO()
        fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(disk_image(64, 50.0 + record[4]).astype(np.int16), compression_type="RICE_1")]).writeto(buffer)
        self.exported[path] = buffer.getvalue()
        return dict(record=self.name(record) + f"{{{record[1]}}}", filename=path)

    def file(self, record, query):
        cut = re.search(r"width=(\d+)", query.get("process=n", query.get("process", "")))
        size = int(cut[1]) // 10 if cut else 64
        content = None if record[0].startswith("aia") else "MAGNETOGRAM"
        return fits_bytes(disk_image(size, 50.0 + record[4]), sun_header(record[3], record[4], size, content))


def jp2_bytes(time, channel, folder, size=64):
    "A JPEG 2000 as Helioviewer has it: grey values, and the FITS header in an XML box"
    import glymur
    from lxml import etree

    path = folder / f"{time:%Y%m%d_%H%M%S}_{channel}_{threading.get_ident()}.jp2"
    glymur.Jp2k(path, data=(disk_image(size, 200.0)).astype(np.uint8))
    meta = etree.Element("meta")
    box = etree.SubElement(meta, "fits")
    content = {"hmi_m": "MAGNETOGRAM", "hmi_ic": "CONTINUUM INTENSITY"}.get(channel)
    for key, value in sun_header(time, 0 if content else int(channel), size, content).items():
        etree.SubElement(box, key).text = str(value)
    glymur.Jp2k(path).append(glymur.jp2box.XMLBox(xml=etree.ElementTree(meta)))
    body = path.read_bytes()
    path.unlink()
    return body


class LookalikeHelioviewer(Lookalike):
    "The Helioviewer API: an image every `every` from `first` on, but none in the gap"
    IDS = {"94": 8, "131": 9, "171": 10, "193": 11, "211": 12, "304": 13, "335": 14, "1600": 15, "1700": 16, "4500": 17}

    def __init__(self, folder, first=datetime(2014, 1, 1, 0, 0, 11), every=timedelta(minutes=36), n=200, gap=(), ids=None):
        super().__init__()
        self.folder, self.ids = folder, ids or {**self.IDS, "hmi_ic": 18, "hmi_m": 19}
        self.times = [t for t in (first + i * every for i in range(n)) if not (gap and gap[0] <= t < gap[1])]

    def answer(self, path, query):
        if path.rstrip("/").endswith("getDataSources"):
            aia = {k: dict(sourceId=v, nickname=f"AIA {k}", layeringOrder=1) for k, v in self.ids.items() if k.isdigit()}
            hmi = {"continuum": dict(sourceId=self.ids["hmi_ic"], nickname="HMI Int"), "magnetogram": dict(sourceId=self.ids["hmi_m"], nickname="HMI Mag")}
            return as_json({"SDO": {"AIA": aia, "HMI": hmi}, "SOHO": {"EIT": {"171": dict(sourceId=0, nickname="EIT 171")}}})
        if "date" not in query:
            return as_json({"error": "Invalid date"})
        wanted = datetime.strptime(query["date"], "%Y-%m-%dT%H:%M:%SZ")
        time = min(self.times, key=lambda t: abs(t - wanted))
        channel = next(k for k, v in self.ids.items() if v == int(query["sourceId"]))
        if path.rstrip("/").endswith("getClosestImage"):
            return as_json(dict(id=34205701, date=f"{time:%Y-%m-%d %H:%M:%S}", scale=0.6, width=4096, height=4096, rsun=1600, layeringOrder=1))
        if path.rstrip("/").endswith("getJP2Image"):
            return 200, "image/jp2", jp2_bytes(time, channel, self.folder)
        return NOT_FOUND


class LookalikeBrowse(Lookalike):
    "The directories of SDO browse images, as Apache lists them; days without a folder give 404"

    def __init__(self, times, names=("0171", "0094", "HMIB"), sizes=(512, 1024)):
        super().__init__()
        self.files = [f"{t:%Y%m%d_%H%M%S}_{s}_{n}.jpg" for t in times for n in names for s in sizes]
        buffer = io.BytesIO()
        Image.fromarray(disk_image(128, 200.0).astype(np.uint8)).save(buffer, "JPEG")
        self.jpeg = buffer.getvalue()

    def answer(self, path, query):
        day = re.search(r"/(\d{4})/(\d\d)/(\d\d)/(.*)", path)
        here = [f for f in self.files if day and f.startswith("".join(day.groups()[:3]))]
        if not here:
            return NOT_FOUND
        if day[4]:
            return (200, "image/jpeg", self.jpeg) if day[4] in here else NOT_FOUND
        rows = "".join(f'<tr><td><a href="{f}">{f}</a></td><td align="right">2014-01-03 00:20  </td></tr>\n' for f in here)
        return 200, "text/html;charset=UTF-8", f"<html><h1>Index of {path}</h1><table>{rows}</table></html>".encode()
