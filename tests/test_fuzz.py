"""Two thousand spoiled files: 500 FITS, JPEG 2000, JPEG and tables each, mutated by hypothesis.

Whatever the bytes, `read_frame` gives a sane frame or an error that names the file and says what to do, and
the readers of tables give rows that are sound or marked. Never another exception, never a crash, a hang, or
a machine without memory: each kind runs in a process of its own (this file is its program), with a limit to
its memory, so that these would be seen."""
import faulthandler
import io
import json
import os
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import warnings
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from real_data import DATA  # noqa: E402

N = 500
REMEDY = re.compile(r"Fetch it again|[Ll]eave it out|Remove it|Rename the file|rename its columns|expected one of|Harmonise|choose from")
MEMORY, HANG = 6 * 2 ** 30, 60   # bytes of address space; seconds for one file of a few kilobytes


# Seeds: small good files, from real ones where these are there

def sun_map(size=64):
    from search_sdo.packager.synthetic import SmallSun
    return SmallSun(seed=1).frame("2014-02-25", size=size).to_map()


def fits_seeds():
    "A plain and a RICE-compressed image, and a real level-1 file"
    from astropy.io import fits
    plain, packed, m = io.BytesIO(), io.BytesIO(), sun_map()
    header = fits.Header({k: v for k, v in m.meta.items() if isinstance(v, (str, int, float)) and len(k) <= 8})
    fits.PrimaryHDU(m.data.astype(np.float32), header).writeto(plain)
    counts = np.nan_to_num(m.data).clip(0, 3e4).astype(np.int16)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(counts, header, compression_type="RICE_1")]).writeto(packed)
    real = DATA / "fits/aia_171_level1_128.fits"
    return [plain.getvalue(), packed.getvalue(), *([real.read_bytes()] if real.is_file() else [])]


def boxes(data):
    "The boxes of a JPEG 2000 file: (type, bytes of the whole box)"
    at = 0
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at:at + 8])
        yield kind, data[at:at + length] if length else data[at:]
        at += length or len(data)


def jp2_seeds():
    "A small picture with the header of a real file, if there is one, and of our own Sun in its XML box"
    grey = io.BytesIO()
    m = sun_map(96)
    Image.fromarray(np.nan_to_num(m.data).clip(0, 1000).astype(np.float32) * 0.25).convert("L").save(grey, "JPEG2000")
    keys = {k.upper(): v for k, v in m.meta.items() if isinstance(v, (str, int, float)) and re.fullmatch(r"[A-Za-z][\w-]*", k)}
    texts = ["<meta><fits>" + "".join(f"<{k}>{str(v).replace('<', ' ').replace('&', ' ')}</{k}>" for k, v in keys.items()) + "</fits></meta>"]
    for path in sorted((DATA / "jp2").glob("*HMI*.jp2")):
        texts.append(next(box[8:] for kind, box in boxes(path.read_bytes()) if kind == b"xml ").decode("utf-8", "replace"))
    for text in texts:
        xml = struct.pack(">I4s", 8 + len(text.encode()), b"xml ") + text.encode()
        yield b"".join(xml + box if kind == b"jp2c" else box for kind, box in boxes(grey.getvalue()))


def jpeg_seeds():
    "Grey and coloured, baseline and progressive"
    picture = Image.fromarray(np.nan_to_num(sun_map(96).data[::-1]).clip(0, 1000).astype(np.float32) * 0.25).convert("L")
    for image, options in ((picture, {}), (picture.convert("RGB"), {}), (picture, dict(progressive=True, optimize=True))):
        out = io.BytesIO()
        image.save(out, "JPEG", quality=85, **options)
        yield out.getvalue()


FLARES = "date,start,peak,end,goes_class,noaa_ar,lon,lat\n" + "".join(
    f"2014-01-{d:02d},2014-01-{d:02d} 10:00:00,2014-01-{d:02d} 10:09:00,2014-01-{d:02d} 10:20:00,{c},{n},{x},8\n"
    for d, c, n, x in [(1, "M1.5", 11944, -12), (2, "X1.2", 1944, 0), (3, "B9.9", 0, 0), (4, "C1.0", 11950, 80)])
REGIONS = "date_0ut,section,noaa_ar,lat_deg,lon_deg_west_positive,carrington_lon,area_msh,mcintosh,extent_deg,n_spots,mag_type\n" + "".join(
    f"2014-01-{d:02d},{s}\n" for d, s in [(1, "I,11944,-9,-12,102,1415,Fkc,20,69,Beta-Gamma-Delta"), (2, "I,11950,12,80,1,20,Hsx,2,1,Alpha"), (3, "IA,11940,5,-77,88,,,,,")])
EVENT = dict(event_type="CH", event_starttime="2014-01-09T00:00:00", event_endtime="2014-01-09T12:00:00", hgs_x=-30.5, hgs_y=10.2,
             hgs_bbox="POLYGON((-45 0,-16 0,-16 22,-45 22,-45 0))", frm_name="SPoCA", kb_archivid="ivo://x", ar_noaanum=None, fl_goescls="", event_peaktime=None)


def table_seeds():
    "Flares, regions, and HEK events as JSON and CSV"
    yield FLARES.encode()
    yield REGIONS.encode()
    yield json.dumps(dict(result=[EVENT, EVENT | dict(hgs_x=None), EVENT], overmax=False)).encode()
    yield pd.DataFrame([EVENT, EVENT]).to_csv(index=False).encode()
    for name in ("goes_flares", "noaa_active_regions"):
        path = DATA / f"events/{name}_2010_2019.csv"
        if path.is_file():
            yield b"".join(path.open("rb").readlines()[:40])


# Mutations

CARDS = ("SIMPLE XTENSION BITPIX NAXIS NAXIS1 NAXIS2 PCOUNT GCOUNT TFIELDS TFORM1 THEAP ZIMAGE ZCMPTYPE ZBITPIX ZNAXIS ZNAXIS1 ZNAXIS2 ZTILE1 ZTILE2 ZVAL1 ZVAL2 "
         "BSCALE BZERO BLANK CDELT1 CDELT2 CRPIX1 CRPIX2 CRVAL1 CTYPE1 CTYPE2 CUNIT1 CUNIT2 CROTA2 PC1_1 PC1_2 DATE-OBS T_OBS WAVELNTH WAVEUNIT TELESCOP INSTRUME DETECTOR "
         "RSUN_OBS R_SUN RSUN_REF DSUN_OBS HGLT_OBS HGLN_OBS CRLT_OBS EXPTIME BUNIT CONTENT EXTEND").split()
VALUES = ("100000", "2147483647", "99999999999", "-1", "0", "1", "3", "7", "-64", "1E308", "1E-308", "-1E30", "NaN", "INF", "T", "", "'nan'", "'junk'", "'1PB(9)'", "'2014-13-45T99:00:00'", "'HPLT-TAN'", "'deg'", "gone")
SIZES = (0, 1, 96, 97, 1000, 16000, 30000, 65500, 100000, 2 ** 31)


def mutate(data, rng):
    "One small harm: bits, bytes, a cut, another value in the header, another size"
    at = int(len(data) * rng.choice((rng.random(), rng.random() / 20)))   # the front is where headers are
    piece = data[at:at + int(2 ** rng.uniform(0, 8))]
    kind = rng.choice(("flip", "flip", "zero", "repeat", "cut", "insert", "drop", "edit", "edit", "edit", "edit", "size"))
    if kind == "edit":
        return edit(data, rng.choice(VALUES), rng)
    if kind == "size":
        return resize(data, rng.choice(SIZES), rng.choice(SIZES))
    if kind == "cut":
        return data[:at]
    new = dict(flip=bytes(b ^ (1 << rng.randrange(8)) for b in piece[:1]), zero=bytes(len(piece)), repeat=piece * 3, insert=rng.randbytes(9) + piece, drop=b"")
    return data[:at] + new[kind] + data[at + (1 if kind == "flip" else len(piece)):]


def edit(data, value, rng):
    "Another value for a FITS card, for a key in the XML header of a JPEG 2000 file, or in a cell of a table"
    text = value.strip("'").encode()
    if cards := [at for key in CARDS if (at := data.find(f"{key:8s}= ".encode())) >= 0]:
        at = rng.choice(cards)
        new = b"COMMENT   " if value == "gone" else data[at:at + 10] + f"{value:>20s}".encode()
        return data[:at] + new.ljust(80) + data[at + 80:]
    if keys := [key.encode() for key in CARDS if f"<{key}>".encode() in data]:
        key = rng.choice(keys)
        new = re.sub(rb"<%s>[^<]*</%s>" % (key, key), b"" if value == "gone" else b"<%s>%s</%s>" % (key, text, key), data)
        return fix_xml_length(new, len(new) - len(data))
    if data[:1] in b"\xff\x00" or not (cells := list(re.finditer(rb"[^,\n]+", data))):
        return data
    cell = rng.choice(cells)
    return data[:cell.start()] + text + data[cell.end():]


def fix_xml_length(data, more):
    at = data.find(b"xml ")
    length, = struct.unpack(">I", data[at - 4:at])
    return data[:at - 4] + struct.pack(">I", max(0, length + more)) + data[at:]


def resize(data, height, width):
    "Another size in the header of a JPEG (SOF) or of a JPEG 2000 file (ihdr and SIZ)"
    found = re.search(rb"\xff[\xc0\xc2]\x00.\x08", data)
    if found and data[:2] == b"\xff\xd8":
        at = found.end()
        return data[:at] + struct.pack(">HH", min(height, 65535), min(width, 65535)) + data[at + 4:]
    for mark, skip in ((b"ihdr", 4), (b"\xff\x4f\xff\x51", 8)):
        at = data.find(mark) + skip
        if at >= skip and at + 8 <= len(data):
            data = data[:at] + struct.pack(">II", height, width) + data[at + 8:]
    return data


# What may come out

def sane_frame(path):
    "'frame' or 'error'; AssertionError if it is neither"
    from search_sdo.packager.channels import CHANNELS
    from search_sdo.packager.frame import read_frame
    try:
        frame = read_frame(path)
    except (ValueError, FileNotFoundError) as e:
        assert str(path) in str(e), f"does not name the file: {e!r}"
        assert REMEDY.search(str(e)), f"no remedy: {e!r}"
        assert len(str(e)) < 600 and "\n" not in str(e), f"too long: {e!r}"
        return "error"
    d = frame.disk
    assert np.isfinite([d.x, d.y, d.radius, d.roll]).all() and 0 < d.radius < 1e6, f"disk: {d}"
    assert frame.data.ndim == 2 and min(frame.shape) > 0 and frame.data.dtype == np.float32 and np.isfinite(frame.data).any(), frame.shape
    assert isinstance(frame.time, datetime) and frame.channel in CHANNELS and isinstance(frame.unit, str)
    assert repr(frame) and abs(datetime.now() - frame.time).days > 1   # sunpy dates what has no date today
    return "frame"


def sane_table(path):
    "'rows', 'marked' or 'error' from the reader that the file is for"
    from search_sdo.packager.events import read_hek
    from search_sdo.packager.labels import read_flares, read_regions
    found = set()
    for reader in (read_flares, read_regions, read_hek):
        try:
            table = reader(path)
        except (ValueError, FileNotFoundError) as e:
            assert str(path) in str(e) and REMEDY.search(str(e)) and len(str(e)) < 600, repr(e)
            continue
        good = table[table.problem == ""]
        assert good.time.between("1970", "2100").all() and good.kind.notna().all() and (good.end >= good.start).all()
        assert table.lon.dropna().between(-180, 180).all() and table.lat.dropna().between(-90, 90).all()
        assert reader is not read_flares or good.flux.between(1e-9, 1e-2).all()
        if reader is not read_hek:   # no line is lost
            lines = [line for line in path.read_text("utf-8-sig", errors="replace").split("\n")[1:] if line.strip()]
            assert len(table) == len(lines)
        found.add("marked" if len(good) < len(table) else "rows")
    return "marked" if "marked" in found else "rows" if found else "error"


KINDS = dict(fits=(fits_seeds, "20140225_000000_aia_171.fits", sane_frame), jp2=(jp2_seeds, "20140225_000000_aia_171.jp2", sane_frame),
             jpeg=(jpeg_seeds, "20140225_000000_aia_171.jpg", sane_frame), csv=(table_seeds, "events.csv", sane_table))


def work(kind, folder, n):
    "Read `n` mutated files; print what came out; any other outcome is hypothesis' error"
    def hang(*_):
        faulthandler.dump_traceback()
        print(f"a hang: more than {HANG} s for {path}", file=sys.stderr, flush=True)
        os._exit(1)
    make, name, read = KINDS[kind]
    seeds, path, outcomes = list(make()), Path(folder) / name, []
    for seed in seeds:
        path.write_bytes(seed)
        outcomes.append("seed " + read(path))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, hang)

    @settings(max_examples=n, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(st.randoms(use_true_random=True))   # drawn evenly; hypothesis' own numbers are mostly 0 and would harm the first byte
    def one(rng):
        data = rng.choice(seeds)
        for _ in range(rng.choice((1, 1, 2))):
            data = mutate(data, rng)
        path.write_bytes(data)
        signal.alarm(HANG)
        outcomes.append(read(path))
        signal.alarm(0)

    warnings.simplefilter("ignore")
    one()
    print("OUTCOMES", json.dumps(pd.Series(outcomes).value_counts().to_dict()))


@pytest.mark.parametrize("kind", KINDS)
def test_spoiled_files_never_crash_hang_or_pass_for_good(kind, tmp_path):
    done = subprocess.run([sys.executable, __file__, kind, tmp_path, str(N)], capture_output=True, text=True)
    left = tmp_path / KINDS[kind][1]
    if done.returncode:
        shutil.copy(left, kept := Path(tmp_path) / f"kept_{left.name}")
        pytest.fail(f"{'crashed' if done.returncode < 0 else 'failed'} ({done.returncode}); the last file is {kept}\n{done.stdout[-1000:]}\n{done.stderr[-6000:]}", pytrace=False)
    outcomes = json.loads(done.stdout.rsplit("OUTCOMES", 1)[1])
    assert outcomes.pop("seed frame", 0) + outcomes.pop("seed rows", 0) + outcomes.pop("seed marked", 0) == len(list(KINDS[kind][0]()))
    assert sum(outcomes.values()) >= N, outcomes
    assert outcomes["error"] > N / 20 and len(outcomes) >= 2, outcomes   # mutations were neither all fatal nor all harmless


# What the fuzzing found, or was feared, by name

def error_of(folder, kind, which, change):
    from search_sdo.packager.frame import read_frame
    path = folder / KINDS[kind][1]
    path.write_bytes(change(list(KINDS[kind][0]())[which]))
    with pytest.raises(ValueError) as e:
        read_frame(path)
    assert str(path) in str(e.value) and REMEDY.search(str(e.value))
    return str(e.value)


def card(key, value):
    def change(data):
        at = data.index(f"{key:8s}= ".encode())
        return data[:at + 10] + f"{value:>20s}".encode().ljust(70) + data[at + 80:]
    return change


@pytest.mark.parametrize("which, key, value, words", [
    (0, "NAXIS", "2147483647", "2147483647 axes says a header, expected 2"),        # astropy would count them for an hour
    (1, "NAXIS", "999999999", "says a header, expected 2"),
    (0, "NAXIS1", "100000", "truncated"),
    (1, "ZNAXIS1", "2000000", "expected up to 8192 x 8192"),                        # 500 GB of memory
    (0, "CDELT1", "1E-308", "px radius"),
    (0, "CRPIX1", "1E30", "px radius at"),
    (0, "DATE-OBS", "'2014-13-45T99:00:00'", "no time of observation"),
    (0, "DATE-OBS", "''", "no time of observation"),
    (0, "WAVELNTH", "172", "channel 172 is not known"),
])
def test_a_header_that_lies(tmp_path, which, key, value, words):
    assert words in error_of(tmp_path, "fits", which, card(key, value))


@pytest.mark.parametrize("kind", ["jpeg", "jp2"])
@pytest.mark.parametrize("height, width", [(65500, 65500), (16000, 16000), (9000, 8000)])
def test_a_picture_that_would_fill_the_memory(tmp_path, kind, height, width):
    assert re.search("expected up to 8192 x 8192|could be decompression bomb", error_of(tmp_path, kind, 0, lambda data: resize(data, height, width)))


def test_a_jp2_whose_xml_is_damaged(tmp_path):
    words = error_of(tmp_path, "jp2", 0, lambda data: data.replace(b"</fits>", b"</fitz>"))
    assert "XML of its header is damaged" in words


@pytest.mark.parametrize("suffix", [".fits", ".jp2", ".jpg", ".png"])
def test_an_empty_file_is_named(suffix, tmp_path):
    (tmp_path / f"20140225_000000_aia_171{suffix}").touch()
    assert sane_frame(tmp_path / f"20140225_000000_aia_171{suffix}") == "error"


if __name__ == "__main__":
    work(*sys.argv[1:3], int(sys.argv[3]))
