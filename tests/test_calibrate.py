"""Calibration against aiapy and sunpy, and its faults."""
from dataclasses import replace
from datetime import datetime

import numpy as np
import pandas as pd
import pytest

from real_data import DATA, needs_data
from search_sdo.packager.calibrate import Calibration, degradation, harmonise, harmonised_disk, read_pointing, resample, source_pixels, updated_disk
from search_sdo.packager.frame import Disk, Frame, read_frame
from search_sdo.packager.optics import deconvolve, psf, respike
from search_sdo.packager.response import read_response
from search_sdo.packager.synthetic import SmallSun

aiapy = pytest.importorskip("aiapy", reason='aiapy is not installed: pip install "search_sdo[calibration]"')
SUN = SmallSun(seed=3)


def solarsoft_table(path):
    "Our table, written as SolarSoft writes its own"
    rows = read_response().assign(DATE="2020-10-26T00:14:21.733", VER_NUM=lambda t: t.version, WAVELNTH=lambda t: t.wavelength, EFF_AREA=lambda t: t.area, EFF_WVLN=lambda t: t.wavelength,
                                  EFFA_P1=lambda t: t.p1, EFFA_P2=0.0, EFFA_P3=0.0, WAVE_STR=lambda t: [f"{w}" + "_THIN" * (w < 1000) for w in t.wavelength])
    rows["T_START"], rows["T_STOP"] = (rows[c].dt.strftime("%Y-%m-%dT%H:%M:%S.000") for c in ("start", "stop"))
    names = ["DATE", "T_START", "T_STOP", "VER_NUM", "WAVE_STR", "WAVELNTH", "EFF_AREA", "EFF_WVLN", "EFFA_P1", "EFFA_P2", "EFFA_P3"]
    path.write_text("\n".join(" ".join(map(str, row)) for row in [names, *rows[names].values.tolist()]) + "\n")
    return path


# Degradation

@pytest.mark.parametrize("channel", ["94", "131", "171", "193", "211", "304", "335", "1600", "1700"])
def test_degradation_equals_aiapys(channel, tmp_path):
    import astropy.units as u
    from aiapy.calibrate import degradation as theirs
    from aiapy.calibrate.util import get_correction_table
    from astropy.time import Time
    table = get_correction_table(str(solarsoft_table(tmp_path / "aia_V10_response_table.txt")))
    for time in ("2010-05-01T12:00:00", "2012-11-05T01:02:03", "2015-05-01T12:00:00", "2019-02-01", "2026-01-01"):
        expected = theirs(int(channel) * u.angstrom, Time(time), correction_table=table)
        assert degradation(channel, time) == pytest.approx(float(expected[0]), rel=1e-6)


def test_a_table_of_solarsoft_is_read_and_used(tmp_path):
    path = solarsoft_table(tmp_path / "aia_V10_response_table.txt")
    pd.testing.assert_frame_equal(read_response(path)[["wavelength", "start", "area", "p1", "stop"]], read_response()[["wavelength", "start", "area", "p1", "stop"]])
    frame = replace(SUN.frame("2016-01-01", size=64), channel="304", unit="DN", meta=dict(exptime=2.9, lvl_num=1.5))
    table = read_response(path)
    table["area"] *= np.where(table.start > "2011", 2, 1)
    twice = replace(frame)
    assert degradation("304", frame.time, table) == pytest.approx(2 * degradation("304", frame.time))
    assert "V10" in harmonise(twice, 64, Calibration(response=str(path))).meta["calibration"]


def test_the_shipped_versions_are_recorded():
    table = read_response()
    assert dict(table.groupby("wavelength").version.first()) == {94: 10, 131: 10, 171: 10, 193: 10, 211: 10, 304: 10, 335: 10, 1600: 8, 1700: 8}


@pytest.mark.parametrize("channel,time", [("171", "2009-01-01"), ("171", "2031-01-01"), ("4500", "2014-01-01")])
def test_outside_the_table_is_an_error_with_a_remedy(channel, time):
    with pytest.raises(ValueError, match=f"channel {channel}.*degradation=False"):
        degradation(channel, time)


@pytest.mark.parametrize("text,match", [("", "not a response table"), ("<html>gone</html>\n", "no column VER_NUM"), ("a b c\n1 2 3\n", "no column VER_NUM")])
def test_a_wrong_response_table_is_named(text, match, tmp_path):
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(ValueError, match=f"t.txt.*{match}"):
        read_response(tmp_path / "t.txt")
    with pytest.raises(FileNotFoundError, match="nothing.txt"):
        read_response(tmp_path / "nothing.txt")


def test_what_is_corrected_and_what_is_not():
    counts = replace(SUN.frame("2016-01-01", size=64), channel="335", unit="DN", meta=dict(exptime=2.0, lvl_num=1.0))
    factor = 2.0 * degradation("335", counts.time)
    plain = resample(counts.data, counts.disk, 64)
    for frame, expected, told in ((counts, plain / factor, "degradation V10"),
                                  (replace(counts, unit="DN/s"), plain / degradation("335", counts.time), "degradation V10"),
                                  (replace(counts, meta=dict(exptime=2.0)), plain / 2, "header"),
                                  (replace(counts, meta=dict(exptime=2.0, lvl_num=1.5, degradation="V9")), plain / 2, "before (V9)"),
                                  (replace(counts, channel="4500"), plain / 2, "degradation not known"),
                                  (replace(counts, unit="display"), plain, "header")):
        done = harmonise(frame, 64)
        np.testing.assert_allclose(done.data, expected, rtol=1e-5)
        assert told in done.meta["calibration"]
    assert "not corrected" in harmonise(counts, 64, Calibration(degradation=False)).meta["calibration"]


def test_counts_without_an_exposure_time_are_refused():
    frame = replace(SUN.frame("2016-01-01", size=64), unit="DN", meta=dict(lvl_num=1.0))
    with pytest.raises(ValueError, match="exposure time"):
        harmonise(frame, 64)


# Geometry

def level1(roll=0.4, x0=2041.65, y0=2047.41, scale=0.600714, size=4096):
    "A level-1 AIA header and counts, with a bright dot at solar x = 300, y = -200 arcsec"
    turn, rows = np.radians(roll), np.indices((size, size), dtype=np.float32)
    dx, dy = (300 * np.cos(turn) + -200 * np.sin(turn)) / scale, (-300 * np.sin(turn) + -200 * np.cos(turn)) / scale
    data = 100 * np.exp(-((rows[1] - x0 - dx) ** 2 + (rows[0] - y0 - dy) ** 2) / (2 * 6.0 ** 2)) + 20
    header = {"telescop": "SDO/AIA", "instrume": "AIA_3", "wavelnth": 171, "waveunit": "angstrom", "exptime": 2.0, "lvl_num": 1.0, "quality": 0, "date-obs": "2014-02-25T00:00:11.34",
              "t_obs": "2014-02-25T00:00:12.34", "ctype1": "HPLN-TAN", "ctype2": "HPLT-TAN", "cunit1": "arcsec", "cunit2": "arcsec", "crval1": 0.0, "crval2": 0.0, "cdelt1": scale, "cdelt2": scale,
              "crpix1": x0 + 1, "crpix2": y0 + 1, "crota2": roll, "rsun_obs": 969.5, "dsun_obs": 1.481e11, "rsun_ref": 6.96e8, "hgln_obs": 0.0, "hglt_obs": -7.1, "sat_rot": 0.0001, "bunit": "DN"}
    return data.astype(np.float32), header


def brightest(data):
    "Centre of light around the brightest pixel: column, row"
    row, col = np.unravel_index(np.nanargmax(data), data.shape)
    part = data[row - 8:row + 9, col - 8:col + 9] - np.nanmin(data)
    part = np.where(part > 0.2 * part.max(), part, 0)
    rows, cols = np.indices(part.shape)
    return col - 8 + (part * cols).sum() / part.sum(), row - 8 + (part * rows).sum() / part.sum()


def test_a_level_1_dot_lands_where_aiapy_registers_it():
    import sunpy.map
    from aiapy.calibrate import register
    data, header = level1()
    m = sunpy.map.Map(data, header)
    done = harmonise(Frame.from_map(m), 1024)
    per_arcsec = done.disk.radius / 969.5
    expected = done.disk.x + 300 * per_arcsec, done.disk.y + 200 * per_arcsec
    np.testing.assert_allclose(brightest(done.data), expected, atol=0.1)
    registered = register(m, order=3)
    theirs = source_pixels(*brightest(registered.data[::-1]), Frame.from_map(registered).disk, done.disk)
    np.testing.assert_allclose(theirs, expected, atol=0.1)


def test_pointing_table_is_used_as_aiapy_uses_it(tmp_path):
    import astropy.units as u
    import sunpy.map
    from aiapy.calibrate import update_pointing
    from astropy.table import QTable
    from astropy.time import Time
    rows = pd.DataFrame([dict(T_START="2014-02-25T00:00:00Z", T_STOP="2014-02-25T03:00:00Z", A_171_X0=2050.5, A_171_Y0=2040.25, A_171_IMSCALE=0.5995, A_171_INSTROT=0.019),
                         dict(T_START="2014-02-25T03:00:00Z", T_STOP="2014-02-25T06:00:00Z", A_171_X0=1.0, A_171_Y0=1.0, A_171_IMSCALE=1.0, A_171_INSTROT=1.0)])
    rows.to_csv(tmp_path / "pointing.csv", index=False)
    theirs = QTable({"T_START": Time(["2014-02-25T00:00:00"]), "T_STOP": Time(["2014-02-25T03:00:00"]), "A_171_X0": [2050.5] * u.pix, "A_171_Y0": [2040.25] * u.pix,
                     "A_171_IMSCALE": [0.5995] * u.arcsec / u.pix, "A_171_INSTROT": [0.019] * u.deg})
    data, header = level1()
    m = sunpy.map.Map(data, header)
    expected = Frame.from_map(update_pointing(m, pointing_table=theirs)).disk
    new = updated_disk(Frame.from_map(m), read_pointing(tmp_path / "pointing.csv"))
    np.testing.assert_allclose([new.x, new.y, new.radius, new.roll], [expected.x, expected.y, expected.radius, expected.roll], atol=1e-6)
    done = harmonise(Frame.from_map(m), 256, Calibration(pointing=str(tmp_path / "pointing.csv")))
    assert "pointing table" in done.meta["calibration"]
    table = read_pointing(tmp_path / "pointing.csv")
    for other in (dict(meta=dict(t_obs="2015-01-01T00:00:00", rsun_obs=969.5)), dict(meta=dict(t_obs="2014-02-25T00:00:12")), dict(channel="193"), dict(data=np.ones((64, 64), "f4"))):
        frame = replace(Frame.from_map(m), **other)
        assert updated_disk(frame, table) is frame.disk
    assert "pointing of the header" in harmonise(late := replace(Frame.from_map(m), meta=dict(t_obs="2015-01-01", exptime=2.0)), 64, Calibration(pointing=str(tmp_path / "pointing.csv"))).meta["calibration"]
    assert harmonise(late, 64).meta["source_disk"] == late.disk and done.meta["source_disk"] == new


def test_a_wrong_pointing_table_is_named(tmp_path):
    (tmp_path / "p.csv").write_text("<html>not found</html>\n")
    with pytest.raises(ValueError, match="p.csv.*master_aia_pointing3h"):
        read_pointing(tmp_path / "p.csv")
    with pytest.raises(FileNotFoundError, match="none.csv"):
        read_pointing(tmp_path / "none.csv")


def test_hmi_keeps_its_sign_and_ends_at_the_limb():
    size, disk = 200, Disk(99.5, 99.5, 90, roll=180)
    y, x = np.indices((size, size))
    field = np.where(x < 100, -500, 400).astype("f4")
    done = harmonise(Frame(field, datetime(2014, 2, 25), "hmi_m", disk, "Gauss"), 128)
    r = np.hypot(*(np.indices((128, 128)) - 63.5)) / harmonised_disk(128).radius
    assert np.isnan(done.data[r > 1.001]).all() and np.isfinite(done.data[r < 0.999]).all()
    assert done.data[64, 30] == pytest.approx(400) and done.data[64, 98] == pytest.approx(-500)
    picture = harmonise(Frame(np.abs(field), datetime(2014, 2, 25), "hmi_ic", disk, "display"), 128)
    assert np.isfinite(picture.data).mean() > 0.7


@needs_data
def test_a_real_magnetogram_and_a_real_cutout_keep_their_values():
    frame = read_frame(DATA / "fits/hmi_los_magnetogram_cutout_20110214_203412.fits")
    done = harmonise(frame, 4096)
    assert done.unit == "Gauss" and np.nanmin(done.data) < -500 and np.nanmax(done.data) > 500
    assert np.nanmean(done.data) == pytest.approx(np.nanmean(frame.data), abs=3)
    cut = read_frame(DATA / "fits/aia.lev1_euv_12s.2012-07-19T073001Z.171.image.fits")
    even = harmonise(cut, 4096)
    assert np.nanmean(even.data) == pytest.approx(np.nanmean(cut.data) / cut.meta["exptime"] / degradation("171", cut.time), rel=0.01)


# Optics

def test_deconvolution_equals_aiapys():
    import sunpy.map
    from aiapy.psf import deconvolve as theirs
    image = SUN.frame("2014-02-25", size=128).data
    y, x = np.indices((128, 128)) - 64
    spread = np.exp(-np.abs(x) / 2 - np.abs(y) / 3)
    spread = spread / spread.sum()
    blurred = np.fft.irfft2(np.fft.rfft2(image) * np.fft.rfft2(np.fft.ifftshift(spread))).astype(np.float32)
    _, header = level1()
    expected = theirs(sunpy.map.Map(blurred, header), psf=spread, iterations=10, use_gpu=False).data
    np.testing.assert_allclose(deconvolve(blurred, spread, 10), expected, rtol=2e-3, atol=0.05)


def test_deconvolution_keeps_what_was_not_measured_and_refuses_other_sizes():
    image = SUN.frame("2014-02-25", size=64).data
    image[:5] = np.nan
    spread = np.zeros((64, 64))
    spread[32, 32] = 1
    done = deconvolve(image, spread, 3)
    assert np.isnan(done[:5]).all() and np.isfinite(done[5:]).all()
    with pytest.raises(ValueError, match="level-1 frames of full size"):
        deconvolve(image[:32], spread)


def test_deconvolution_is_part_of_harmonising(monkeypatch):
    import search_sdo.packager.optics as optics
    frame, point = SUN.frame("2014-02-25", size=64), np.zeros((64, 64), "f4")
    point[32, 32] = 1
    monkeypatch.setattr(optics, "psf", lambda channel, folder: point)
    done = harmonise(frame, 64, Calibration(psf_rounds=2))
    np.testing.assert_allclose(done.data, harmonise(frame, 64).data.clip(0), rtol=1e-3, atol=1e-3)
    assert "PSF 2 rounds" in done.meta["calibration"]


def test_the_psf_is_the_right_way_up_when_harmonising(monkeypatch):
    import search_sdo.packager.optics as optics
    import sunpy.map
    from aiapy.psf import deconvolve as theirs
    header = {**level1(size=64)[1], "crpix1": 32.5, "crpix2": 32.5, "cdelt1": 40.0, "cdelt2": 40.0, "crota2": 0.0}
    m = sunpy.map.Map(SUN.frame("2014-02-25", size=64).data.clip(1)[::-1], header)
    spread = np.zeros((64, 64))
    spread[32, 32], spread[29, 34] = 0.7, 0.3               # to one side, below the middle in FITS order
    monkeypatch.setattr(optics, "psf", lambda channel, folder: spread)
    expected = harmonise(Frame.from_map(theirs(m, psf=spread, iterations=5, use_gpu=False)), 64)
    done = harmonise(Frame.from_map(m), 64, Calibration(psf_rounds=5))
    seen = np.isfinite(expected.data)
    np.testing.assert_allclose(done.data[seen], expected.data[seen], rtol=5e-3, atol=0.05)


def test_a_psf_kept_in_a_file_is_read(tmp_path):
    np.save(tmp_path / "psf_171.npy", np.eye(4, dtype="f4"))
    np.testing.assert_array_equal(psf("171", tmp_path), np.eye(4))


def test_spikes_are_put_back_as_aiapy_does_it(tmp_path):
    import astropy.units as u
    import sunpy.map
    from aiapy.calibrate import respike as theirs
    from astropy.io import fits
    from sunpy.map.mapbase import PixelPair
    data, header = level1()
    m = sunpy.map.Map(data, {**header, "nspikes": 3})
    where, values = np.array([5, 4096 * 7 + 11, 4096 * 4095 + 4095]), np.array([9000, 8000, 7000])
    expected = theirs(m, spikes=(PixelPair(where % 4096 * u.pix, where // 4096 * u.pix), values)).data
    np.testing.assert_array_equal(respike(Frame.from_map(m), np.stack([where, values])).data, expected[::-1])
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.stack([where, values, values]).astype("i4"))]).writeto(tmp_path / "spikes.fits")
    np.testing.assert_array_equal(respike(Frame.from_map(m), tmp_path / "spikes.fits").data, expected[::-1])
