"""A stranger's file becomes a frame, a picture or one sentence, and never a file on the disk."""
import builtins
import io
import os
import struct
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from search_sdo.packager.frame import Frame, read_frame
from search_sdo.packager.synthetic import SmallSun
from search_sdo.search.upload import (
    MAX_BYTES, ask_upload, check_fits, fits_headers, jp2_boxes, jp2_header, kind_of, label, open_picture, read_upload, shrink, whole_disk)
from real_data import DATA, needs_data

FRAME = SmallSun(seed=0).frame("2014-01-01")


def saved(pixels, kind="PNG", **how):
    file = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(file, kind, **how)
    return file.getvalue()


def fits_file(data=None, header=(), hdu=fits.ImageHDU, **how):
    file = io.BytesIO()
    if data is None:
        FRAME.to_map().save(file, filetype="fits")
        return file.getvalue()
    fits.HDUList([fits.PrimaryHDU(), hdu(data, fits.Header(header), **how)]).writeto(file)
    return file.getvalue()


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of(width, height, content=b""):
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


FITS = fits_file()
SHOWN = 255 * FRAME.data / np.nanmax(FRAME.data)


# --- what may come in -------------------------------------------------------------------------------------------------

def test_fits_gives_what_was_saved():
    frame = read_upload("x.fits", FITS)
    np.testing.assert_allclose(frame.data, FRAME.data, rtol=1e-5)
    assert (frame.channel, frame.unit, frame.time) == ("171", "DN/s", FRAME.time) and abs(frame.disk.radius - FRAME.disk.radius) < .5


@pytest.mark.parametrize("kind, name", [("PNG", "a.png"), ("JPEG", "a.jpg"), ("JPEG2000", "a.jp2")])
def test_a_whole_sun_without_a_name_is_found_by_its_limb(kind, name):
    frame = read_upload(name, saved(SHOWN, kind), "171")
    assert isinstance(frame, Frame) and frame.time is pd.NaT and (frame.channel, frame.unit) == ("171", "display")
    assert abs(frame.disk.radius - FRAME.disk.radius) < 3 and abs(frame.disk.x - FRAME.disk.x) < 2


def test_the_name_says_time_and_channel_whatever_the_caller_thinks():
    frame = read_upload("C:\\mine\\20140630_120000_aia_193.png", saved(SHOWN), "171")
    assert (frame.time, frame.channel) == (pd.Timestamp("2014-06-30T12:00"), "193")


def test_a_tile_stays_a_picture():
    tile = SHOWN[60:124, 100:164]
    np.testing.assert_array_equal(read_upload("tile.png", saved(tile)), np.asarray(tile, np.uint8))


def test_content_decides_and_not_the_end_of_the_name():
    assert isinstance(read_upload("holiday.docx", FITS), Frame)
    assert kind_of(saved(SHOWN, "JPEG")) == "JPEG"


def test_sixteen_bits_become_eight():
    file = io.BytesIO()
    Image.fromarray((np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)).save(file, "PNG")
    np.testing.assert_allclose(open_picture(file.getvalue(), "PNG"), np.arange(256).reshape(16, 16), atol=.01)


@needs_data
@pytest.mark.parametrize("path", ["fits/aia_171_level1_128.fits", "fits/hmi_los_magnetogram_cutout_20110214_203412.fits", "jp2/2023_01_31__03_39_23_200__SDO_HMI_HMI_continuum.jp2",
                                  "coronal_holes/20180530_120017_aia_193.jpg"])
def test_real_files_are_read_as_from_the_disk(path):
    ours, theirs = read_upload(path, (DATA / path).read_bytes()), read_frame(DATA / path)
    np.testing.assert_array_equal(ours.data, theirs.data)
    assert (ours.time, ours.channel, ours.unit) == (theirs.time, theirs.channel, theirs.unit)
    assert abs(ours.disk.x - theirs.disk.x) < .01 and abs(ours.disk.radius - theirs.disk.radius) < .01


@needs_data
def test_a_remapped_product_is_refused_with_the_reason():
    path = DATA / "fits/hmi.sharp_cea_720s.377.20110215_020000_TAI.continuum.fits"
    with pytest.raises(ValueError, match="CRLN-CEA"):
        read_upload(path.name, path.read_bytes())


# --- what may not -----------------------------------------------------------------------------------------------------

HOSTILE = dict(
    nothing=(b"", "the file is empty"),
    gzip=(b"\x1f\x8b\x08" + b"\0" * 50, "neither FITS"),
    zip=(b"PK\x03\x04" + b"\0" * 50, "neither FITS"),
    svg=(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "neither FITS"),
    html=(b"<script>alert(1)</script>", "neither FITS"),
    postscript=(b"%!PS-Adobe-3.0 EPSF-3.0\n", "neither FITS"),
    huge_png=(png_of(10_000, 10_000, bytes(10_001) * 10), "10,000 x 10,000 px, expected up to 4,096"),
    huge_png_beyond_pillow=(png_of(2**31 - 1, 2**31 - 1), "can(not)? be read|px, expected|damaged"),
    thin_png=(png_of(2**25, 1), "px, expected up to"),
    flat_png=(png_of(0, 10), "damaged|expected"),
    cut_png=(saved(np.random.default_rng(0).integers(256, size=(64, 64)))[:900], "damaged|cut off"),
    cut_jpeg=(saved(SHOWN, "JPEG")[:3000], "damaged|cut off"),
    cut_fits=(FITS[:5000], "damaged|cut off|without an end"),
    axes=(FITS.replace(b"NAXIS   =                    2", b"NAXIS   =                  999"), "999 axes"),
    wide_fits=(FITS.replace(b"NAXIS1  =                  256", b"NAXIS1  =              9999999"), "9,999,999 x 256 px"),
    negative_fits=(FITS.replace(b"NAXIS1  =                  256", b"NAXIS1  =                 -256"), "px, expected"),
    no_sun=(fits_file(np.ones((32, 32), np.float32)), "evil"),
    endless=(b"SIMPLE  =                    T" + b"A" * 500_000, "without an end"),
    many_units=(b"SIMPLE  =                    T" + b" " * 50 + b"END" + b" " * (2880 - 83) + (b"XTENSION= 'IMAGE   '" + b" " * 60 + b"END" + b" " * (2880 - 83)) * 100, "101 units"),
    gzip_inside=(fits_file(np.zeros((64, 64), np.float32), hdu=fits.CompImageHDU, compression_type="GZIP_1"), "gzip inside"),
    tiny=(saved(np.ones((3, 3))), "8 x 8 px or more"),
    box_too_long=(b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4s", 2**31, b"xml "), "cut off"),
    box_of_no_length=(b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4s", 3, b"xml ") * 1000, "cut off"),
    entities=(b"\0\0\0\x0cjP  \r\n\x87\n" + struct.pack(">I4s", 8 + 66, b"xml ") + b'<!DOCTYPE a [<!ENTITY b "c"><!ENTITY d "&b;&b;&b;">]><a>&d;</a>   ', "words of its own"),
)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(name):
    data, why = HOSTILE[name]
    with pytest.raises(ValueError, match=why) as refused:
        read_upload("../../../evil", data)
    said = str(refused.value)
    assert said.startswith("evil: ") and "\n" not in said and len(said) < 500 and "BytesIO" not in said and ".." not in said[:10]


def test_too_many_bytes_are_refused_before_anybody_looks_at_them():
    with pytest.raises(ValueError, match="80.3 MB, expected at most 80 MB"):
        read_upload("x.fits", FITS + bytes(MAX_BYTES))
    with pytest.raises(ValueError, match="expected at most"):
        read_upload("x.fits", FITS, max_bytes=1000)


@pytest.mark.parametrize("name", ["huge_png", "wide_fits", "axes", "thin_png"])
def test_refusing_costs_little_memory(name):
    tracemalloc.start()
    with pytest.raises(ValueError):
        read_upload("x", HOSTILE[name][0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


def test_a_tile_of_a_compressed_image_may_not_be_larger_than_a_picture():
    table = bytearray(fits_file(np.zeros((64, 64), np.int16), hdu=fits.CompImageHDU, compression_type="RICE_1"))
    at = table.index(b"ZTILE1  =")
    table[at:at + 30] = b"ZTILE1  =           9999999999"
    with pytest.raises(ValueError, match="9,999,999,999"):
        check_fits(bytes(table))


def test_the_size_in_the_codestream_is_not_believed_less_than_that_in_the_box():
    data = bytearray(saved(SHOWN, "JPEG2000"))
    at = data.index(b"\xff\x4f\xff\x51")
    data[at + 8:at + 16] = struct.pack(">II", 60_000, 60_000)
    with pytest.raises(ValueError, match="60,000 x 60,000 px"):
        read_upload("x.jp2", bytes(data))


def test_all_nan_is_refused():
    empty = Frame(np.full((64, 64), np.nan, np.float32), FRAME.time, "171", FRAME.disk, "DN/s")
    file = io.BytesIO()
    empty.to_map().save(file, filetype="fits")
    with pytest.raises(ValueError, match="not one pixel was measured"):
        read_upload("x.fits", file.getvalue())


def test_nothing_is_written_anywhere(monkeypatch, tmp_path):
    "Neither open() nor os.open() is called for writing while files of every kind are read"
    read_upload("x.fits", FITS)     # what is imported late is imported
    written, open_, os_open = [], builtins.open, os.open
    monkeypatch.setattr(builtins, "open", lambda path, mode="r", *a, **k: (written.append(path) if set(mode) & set("wax+") else None, open_(path, mode, *a, **k))[1])
    monkeypatch.setattr(io, "open", builtins.open)
    monkeypatch.setattr(os, "open", lambda path, flags, *a, **k: (written.append(path) if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else None, os_open(path, flags, *a, **k))[1])
    monkeypatch.chdir(tmp_path)
    for name, data in [("x.fits", FITS), ("x.png", saved(SHOWN)), ("x.jpg", saved(SHOWN, "JPEG")), ("x.jp2", saved(SHOWN, "JPEG2000"))]:
        read_upload(name, data, "171")
    for data, _ in HOSTILE.values():
        with pytest.raises(ValueError):
            read_upload("../x", data)
    assert written == [] and list(tmp_path.iterdir()) == []
    with open(tmp_path / "seen", "w"):
        pass
    assert written == [tmp_path / "seen"]     # the trap works


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from([FITS, saved(SHOWN, "JPEG"), saved(SHOWN), saved(SHOWN, "JPEG2000")]), st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=8)), min_size=1, max_size=6), st.floats(.01, 1))
def test_whatever_is_changed_in_a_file_it_is_read_or_refused(data, changes, share):
    data = bytearray(data[:max(30, int(share ** .2 * len(data)))])
    for where, what in changes:
        at = int(where ** 3 * (len(data) - 1))
        data[at:at + len(what)] = what
    try:
        read = read_upload("x", bytes(data), "171")
    except ValueError as refused:
        assert str(refused).startswith("x: ")
    else:
        assert np.isfinite(read.data if isinstance(read, Frame) else read).any()


@given(st.text())
def test_a_label_is_one_short_visible_name(name):
    made = label(name)
    assert 0 < len(made) <= 80 and "/" not in made and "\\" not in made and made.isprintable() and made not in (".", "..")
    assert label(made) == made


# --- the pieces -------------------------------------------------------------------------------------------------------

def test_headers_are_found_where_units_begin():
    headers = fits_headers(fits_file(np.zeros((8, 8), np.int16)))
    assert len(headers) == 2 and headers[1].startswith(b"XTENSION= 'IMAGE") and b"NAXIS1  =                    8" in headers[1]


def test_boxes_of_every_way_to_say_a_length():
    short = struct.pack(">I4s", 12, b"aaaa") + b"1234"
    long = struct.pack(">I4sQ", 1, b"bbbb", 20) + b"5678"
    rest = struct.pack(">I4s", 0, b"cccc") + b"90"
    assert list(jp2_boxes(short + long + rest)) == [(b"aaaa", b"1234"), (b"bbbb", b"5678"), (b"cccc", b"90")]
    assert jp2_header(short) == {}


def test_no_limb_no_disk():
    rng = np.random.default_rng(0)
    for image in (rng.random((64, 64)), np.zeros((64, 64)), np.add.outer(np.arange(64.), np.arange(64.)), SHOWN[:128, :128], rng.random((8, 300))):
        assert whole_disk(image.astype(np.float32)) is None
    off = np.zeros((400, 400), np.float32)
    off[:256, :256] = SHOWN
    assert whole_disk(off) is None     # a Sun in the corner of something larger


def test_shrink_keeps_the_mean_and_skips_what_was_not_measured():
    image = np.random.default_rng(0).random((96, 96)).astype(np.float32)
    assert abs(shrink(image, 32).mean() - image.mean()) < 1e-6 and shrink(image, 32).shape == (32, 32)
    image[:48] = np.nan
    small = shrink(image, 32)
    assert np.isnan(small[:16]).all() and np.isfinite(small[16:]).all()


def test_questions_from_uploads():
    engine = SimpleNamespace(package=SimpleNamespace(size=256), encoder=SimpleNamespace(size=32, channels=("171",)))
    asked = ask_upload(FRAME, (100, 30, 140, 70), engine, "../a.fits")
    np.testing.assert_allclose(asked.image, FRAME.data[30:70, 100:140], rtol=1e-4)
    assert (asked.name, asked.time, asked.unit) == ("a.fits", pd.Timestamp(FRAME.time), "DN/s")
    picture = SHOWN[:200].astype(np.float32)
    asked = ask_upload(picture, None, engine)
    assert asked.image.shape == (128, 128) and (asked.unit, asked.channel) == ("display", "171")
    np.testing.assert_array_equal(ask_upload(picture, (10, 20, 42, 60), engine).image, picture[24:56, 10:42])
    with pytest.raises(ValueError, match="say where to look"):
        ask_upload(FRAME, None, engine)
    with pytest.raises(ValueError, match="not inside"):
        ask_upload(picture, (0, 0, 999, 10), engine)
