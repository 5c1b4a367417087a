"""Reading frames: real files of every format, sunpy as the oracle, and every kind of bad file."""
from datetime import datetime

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from real_data import DATA, needs_data
from search_sdo.packager.channels import CHANNELS, get_channel, stretch
from search_sdo.packager.frame import Disk, Frame, channel_from_name, find_disk, fit_limb, read_frame, read_image, time_from_name
from search_sdo.packager.synthetic import SmallSun

AIA171 = DATA / "aia171"


@pytest.fixture(scope="module")
def sun():
    return SmallSun(seed=3).frame("2014-02-25", size=256, disk=Disk(121.3, 131.8, 95.0))


# Channels

@pytest.mark.parametrize("name, key", [(171, "171"), ("AIA 171", "171"), ("aia_0094", "94"), ("0304", "304"), ("hmi_m", "hmi_m"),
                                       ("HMIB", "hmi_m"), ("HMI_Ic", "hmi_ic"), ("hmi continuum", "hmi_ic")])
def test_channel_is_understood(name, key):
    assert get_channel(name) is CHANNELS[key]


@pytest.mark.parametrize("name", ["", "17", "1711", "sun", None])
def test_unknown_channel_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="choose from 94, 131"):
        get_channel(name)


@pytest.mark.parametrize("channel", CHANNELS)
def test_stretch_is_monotonic_within_0_and_1_and_keeps_nan(channel):
    values = np.append(np.linspace(-9e4, 9e4, 999), np.nan)
    out = stretch(values, channel)
    assert out.dtype == np.float32 and np.isnan(out[-1])
    assert (np.diff(out[:-1]) >= 0).all() and out[:-1].min() >= 0 and out[:-1].max() == 1


def test_stretch_equals_astropys():
    from astropy.visualization import AsinhStretch
    x = np.linspace(0, 1, 50)
    np.testing.assert_allclose(stretch(x * 1400, "171"), AsinhStretch(0.02)(x), atol=1e-6)


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_colour_map_exists(channel):
    import matplotlib
    import sunpy.visualization.colormaps  # noqa: F401
    assert CHANNELS[channel].cmap in matplotlib.colormaps


# Names

@pytest.mark.parametrize("name, time, channel", [
    ("20110823_000002_aia_171.jpg", datetime(2011, 8, 23, 0, 0, 2), "171"),
    ("20100901_000020_SDO_AIA_304_512.jpg", datetime(2010, 9, 1, 0, 0, 20), "304"),
    ("20200101_000006_4096_0193.jpg", datetime(2020, 1, 1, 0, 0, 6), "193"),
    ("20200101_000006_1024_HMIIC.jpg", datetime(2020, 1, 1, 0, 0, 6), "hmi_ic"),
    ("20200101_000006_1024_HMIB.jpg", datetime(2020, 1, 1, 0, 0, 6), "hmi_m"),
    ("2011_06_25__00_59_43_71__SDO_AIA_AIA_1700.jp2", datetime(2011, 6, 25, 0, 59, 43), "1700"),
    ("aia.lev1_euv_12s.2012-07-19T073001Z.171.image.fits", datetime(2012, 7, 19, 7, 30, 1), "171")])
def test_time_and_channel_from_name(name, time, channel):
    assert time_from_name(name) == time and channel_from_name(name) == channel


@pytest.mark.parametrize("name", ["aia_171.jpg", "20119923_000002_aia_171.jpg"])
def test_name_without_a_time(name):
    with pytest.raises(ValueError, match=f"{name}.*Rename"):
        time_from_name(name)


def test_name_without_a_channel():
    with pytest.raises(ValueError, match="no channel in the name"):
        channel_from_name("20110823_000002.jpg")


# The disk

def test_disk_is_found_where_it_was_drawn(sun):
    disk = find_disk(stretch(sun.data, "171"), "171")
    assert np.hypot(disk.x - 121.3, disk.y - 131.8) < 1 and abs(disk.radius / 95 - 1) < 0.015


def test_limb_fit_is_unsure_of_noise():
    assert fit_limb(np.random.default_rng(0).random((256, 256)).astype("f4"))[1] < 0.5


def test_blank_picture_has_no_disk():
    with pytest.raises(ValueError, match="blank"):
        find_disk(np.zeros((64, 64)))


@needs_data
def test_radius_of_real_frames_within_half_a_per_cent():
    truth = pd.read_csv(AIA171 / "frames.csv").set_index("frame").rsun_px.iloc[::4]
    ratio = np.array([read_frame(AIA171 / name).disk.radius / rsun for name, rsun in truth.items()])
    assert (abs(ratio - 1) < 0.005).all(), ratio


@needs_data
@pytest.mark.parametrize("channel", ["AIA_193", "AIA_304", "HMI_Ic"])
def test_radius_in_other_channels(channel):
    truth = pd.read_csv(DATA / "deepsdo/images.csv").query("channel == @channel").iloc[::40]
    frames = [read_frame(DATA / "deepsdo/images" / f) for f in truth.file]
    close = [abs(f.disk.radius / r - 1) < 0.005 and np.hypot(f.disk.x - x, f.disk.y - y) < 1.5
             for f, r, x, y in zip(frames, truth.rsun_px, truth.cx_px, truth.cy_px)]
    assert np.mean(close) >= 0.8


# sunpy as the oracle

def test_map_and_back_keeps_everything(sun, tmp_path):
    sun.to_map().save(tmp_path / "sun.fits")
    back = read_frame(tmp_path / "sun.fits")
    np.testing.assert_array_equal(back.data, sun.data)
    np.testing.assert_allclose([back.disk.x, back.disk.y, back.disk.radius, back.disk.roll], [121.3, 131.8, 95, 0], atol=1e-4)
    assert (back.time, back.channel, back.unit) == (sun.time, sun.channel, sun.unit)


@pytest.mark.parametrize("unit", ["display", "DN", "DN/s", "Gauss"])
def test_map_and_back_keeps_unit_exposure_and_tilt(sun, unit):
    frame = Frame(sun.data, sun.time, "hmi_m" if unit == "Gauss" else "171", sun.disk, unit, dict(exptime=2.5, b0=-3.25))
    back = Frame.from_map(frame.to_map())
    assert (back.unit, back.channel, back.meta["exptime"]) == (unit, frame.channel, 2.5) and back.meta["b0"] == pytest.approx(-3.25)


def test_counts_cannot_be_stretched_but_shown(sun):
    with pytest.raises(ValueError, match="unit 'DN': cannot be stretched.*per_second"):
        stretch(sun.data, "171", "DN")
    counts = Frame(sun.data * 2, sun.time, "171", sun.disk, "DN", dict(exptime=2.0))
    np.testing.assert_allclose(counts.show().images[0].get_array(), stretch(sun.data, "171"), atol=1e-6)


@pytest.mark.parametrize("roll", [0.1, 30, 180])
def test_roll_means_what_sunpy_means(roll):
    "Solar north of a rolled frame lies where sunpy's coordinates say"
    import astropy.units as u
    from astropy.coordinates import SkyCoord
    frame = SmallSun(seed=3).frame("2014-02-25", size=128, disk=Disk(60, 66, 50, roll))
    m = frame.to_map()
    x, y = m.world_to_pixel(SkyCoord(0 * u.arcsec, m.rsun_obs, frame=m.coordinate_frame))
    turn = np.radians(roll)
    assert abs(x.value - (60 + 50 * np.sin(turn))) < 0.01
    assert abs((127 - y.value) - (66 - 50 * np.cos(turn))) < 0.01
    assert abs(Frame.from_map(m).disk.roll - roll) < 1e-6


@needs_data
@pytest.mark.parametrize("name", ["AIA20110319_105400_0171.fits", "aia.lev1_euv_12s.2012-07-19T073001Z.304.image.fits", "hmi_continuum_100.fits",
                                  "hmi_los_magnetogram_cutout_20110214_203412.fits", "aia_171_cutout.fits"])
def test_real_fits_agrees_with_sunpy(name):
    import sunpy.map
    frame, m = read_frame(DATA / "fits" / name), sunpy.map.Map(DATA / "fits" / name)
    np.testing.assert_array_equal(frame.data, m.data[::-1].astype("f4"))
    assert abs(frame.disk.radius - (m.rsun_obs / m.scale[0]).value) < 1e-6
    assert frame.time == m.date.datetime


@needs_data
def test_jpeg2000_is_read_with_its_header():
    frame = read_frame(DATA / "jp2/2013_06_24__17_31_30_84__SDO_AIA_AIA_193.jp2")
    assert (frame.shape, frame.channel, frame.unit) == ((4096, 4096), "193", "display")
    assert abs(frame.disk.radius - 944.30828 / 0.6) < 1e-3
    assert fit_limb(frame.data[::8, ::8])[0].radius * 8 / 1.012 == pytest.approx(frame.disk.radius, rel=0.01)


@needs_data
def test_remapped_product_is_refused():
    with pytest.raises(ValueError, match="sharp.*CRLN"):
        read_frame(DATA / "fits/hmi.sharp_cea_720s.377.20110215_020000_TAI.magnetogram.fits")


def test_compressed_fits_with_a_table_first(sun, tmp_path):
    from astropy.io import fits
    m = sun.to_map()
    table = fits.BinTableHDU.from_columns([fits.Column("a", "E", array=np.zeros(3))])
    image = fits.CompImageHDU(m.data, m.fits_header, compression_type="RICE_1", quantize_level=-0.01)
    fits.HDUList([fits.PrimaryHDU(), table, image]).writeto(tmp_path / "rice.fits")
    frame = read_frame(tmp_path / "rice.fits")
    np.testing.assert_allclose(frame.data, sun.data, atol=0.02)
    assert abs(frame.disk.radius - 95) < 1e-4


# Pictures

def test_colour_table_is_undone(tmp_path):
    import matplotlib
    import sunpy.visualization.colormaps  # noqa: F401
    grey = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    Image.fromarray((matplotlib.colormaps["sdoaia304"](grey)[..., :3] * 255).round().astype(np.uint8)).save(tmp_path / "c.png")
    assert abs(read_image(tmp_path / "c.png", "304") - grey).max() < 4


# Bad files

def write_fits(sun, path):
    sun.to_map().save(path)
    return path.read_bytes()


def jpeg(sun, path):
    Image.fromarray((stretch(np.nan_to_num(sun.data), "171") * 255).astype(np.uint8)).save(path)
    return path.read_bytes()


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.fits: no such file"):
        read_frame(tmp_path / "nothing.fits")


def test_truncated_fits(sun, tmp_path):
    path = tmp_path / "cut.fits"
    path.write_bytes(write_fits(sun, path)[:100_000])
    with pytest.raises(ValueError, match="cut.fits.*[Tt]runcated"):
        read_frame(path)


def test_text_file_named_fits(tmp_path):
    (tmp_path / "text.fits").write_text("this is not the Sun\n" * 500)
    with pytest.raises(ValueError, match="text.fits: cannot be read as an image of the Sun"):
        read_frame(tmp_path / "text.fits")


def test_jpeg_cut_in_half(sun, tmp_path):
    path = tmp_path / "20140225_000000_aia_171.jpg"
    data = jpeg(sun, path)
    path.write_bytes(data[:len(data) // 2])
    with pytest.raises(ValueError, match="20140225_000000_aia_171.jpg.*cut off or damaged.*[Ff]etch it again"):
        read_frame(path)


def test_picture_that_is_no_picture(tmp_path):
    (tmp_path / "20140225_000000_aia_171.png").write_text("hello")
    with pytest.raises(ValueError, match="not a picture"):
        read_frame(tmp_path / "20140225_000000_aia_171.png")


def test_all_nan_frame(sun, tmp_path):
    blank = Frame(np.full_like(sun.data, np.nan), sun.time, sun.channel, sun.disk, sun.unit)
    blank.to_map().save(tmp_path / "blank.fits")
    with pytest.raises(ValueError, match="blank.fits: not one pixel was measured"):
        read_frame(tmp_path / "blank.fits")


def test_name_without_time_is_an_error_of_that_file(sun, tmp_path):
    jpeg(sun, tmp_path / "aia_171.jpg")
    with pytest.raises(ValueError, match="aia_171.jpg: no time in the name"):
        read_frame(tmp_path / "aia_171.jpg")


def test_unknown_ending(tmp_path):
    (tmp_path / "sun.gif").write_text("")
    with pytest.raises(ValueError, match=r"sun.gif: ends in '.gif', expected one of .fits"):
        read_frame(tmp_path / "sun.gif")


def test_a_picture_of_unknown_date_shows_itself():
    frame = Frame(np.ones((8, 8), np.float32), pd.NaT, "171", Disk(3.5, 3.5, 3.), "display")
    assert "time unknown" in repr(frame)
    assert "time unknown" in frame.show().get_title()
