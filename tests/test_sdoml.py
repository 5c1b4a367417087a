"""SDOML v1, v2 and sdoml-lite opened as packages: stores written as the originals were, and every kind of damage."""
import pickle
import tarfile
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import zarr
from scipy.ndimage import affine_transform

from search_sdo.models.views import load_frames
from search_sdo.packager.frame import Disk
from search_sdo.packager.package import Package
from search_sdo.packager.sdoml import frames_of, open_sdoml, sdoml_disk, sdoml_release, tilts, utc
from search_sdo.packager.synthetic import SmallSun
from search_sdo.packager.tiles import Tiles

SUN = SmallSun(seed=2)
SIZE, WIDTH, RSUN_OBS = 64, 128, 950.0  # of the store, of the "synoptic" image it is made from (1024 in truth), arcsec


def synoptic(time, rsun=RSUN_OBS):
    "A frame as AIA's synoptic archive has it, south first: centre 511.5 of 1024 px, 2.4 arcsec per px, at 1/8 of the width"
    middle = (WIDTH - 1) / 2
    return SUN.frame(time, size=WIDTH, disk=Disk(middle, middle, rsun / 2.4 * WIDTH / 1024)).data[::-1]


def as_sdoml(image, summed, rsun=RSUN_OBS):
    "What SDOML's scripts do: scale about pixel width/2 to 976 arcsec, then bin; v1 sums, v2 takes the mean"
    scale = 976 / rsun
    shift = WIDTH / 2 * (1 - scale)
    scaled = affine_transform(image, [1 / scale, 1 / scale], offset=-shift / scale, order=1, mode="nearest")
    k = WIDTH // SIZE
    mean = scaled.reshape(SIZE, k, SIZE, k).mean((1, 3))
    return (mean * (1024 // SIZE) ** 2 if summed else mean).astype("f4")


def hours(n):
    return pd.date_range("2014-03-01", periods=n, freq="6h")


def write_v1(folder, n=3, layout="{t:%Y}/AIA/0171/{t:%m}/{t:%d}"):
    for t in hours(n):
        day = folder / layout.format(t=t)
        day.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(day / f"AIA{t:%Y%m%d_%H%M}_0171.npz", x=as_sdoml(synoptic(t), summed=True))
        np.savez_compressed(day / f"HMI{t:%Y%m%d_%H%M}_bz.npz", x=np.full((SIZE, SIZE), 7, "f2"))
        np.savez_compressed(day / f"HMI{t:%Y%m%d_%H%M}_bx.npz", x=np.full((SIZE, SIZE), 8, "f2"))
    return folder


def write_v2(path, n=4, attributes=None, years=("2014",), chunk=3, **more):
    root = zarr.open_group(path, mode="w", zarr_format=2)
    for year in years:
        group = root.create_group(year)
        for name in ("171A", "Bz", "Bx"):
            array = group.create_array(name, shape=(n, SIZE, SIZE), chunks=(chunk, SIZE, SIZE), dtype="f4", compressors=more.get("compressors", "auto"))
            times = [t.replace(year=int(year)) for t in hours(n)][::-1]  # not sorted, as in the original
            for i, t in enumerate(times):
                array[i] = as_sdoml(synoptic(t), summed=False) if name == "171A" else np.full((SIZE, SIZE), i, "f4")
            tai = [f"{t + pd.Timedelta(seconds=35):%Y.%m.%d_%H:%M:%S}_TAI" for t in times]
            words = dict(T_OBS=[f"{t:%Y-%m-%dT%H:%M:%S}.34Z" for t in times] if name == "171A" else tai, WAVELNTH=[171] * n)
            if name == "171A":
                words |= dict(EXPTIME=[1.999601] * n, DEG_COR=[0.9 - 0.01 * i for i in range(n)], QUALITY=[0, 1 << 30] + [1 << 13] * (n - 2), CRLT_OBS=[-7.2] * n)
            array.attrs.update(words | (attributes or {}))
    return path


def write_lite(path, n=3, skip=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for t in hours(n):
            for name in ("AIA_0171", "HMI_M"):
                image = np.sqrt(as_sdoml(synoptic(t), summed=False)[::-1].clip(0) / 4000).clip(0, 1) if name == "AIA_0171" else np.full((SIZE, SIZE), 0.5, "f4")
                buffer = BytesIO()
                np.save(buffer, image.astype("f4"))
                info = tarfile.TarInfo(f"{t:%Y/%m/%d/%H%M}.{name}.npy")
                info.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(info, buffer)
    return path.parent


def expected(time):
    "The small Sun drawn where SDOML's disk says it is"
    return SUN.frame(time, size=SIZE, disk=sdoml_disk(SIZE)).data


def agreement(a, b):
    from scipy.ndimage import gaussian_filter
    return np.corrcoef(*(gaussian_filter(np.arcsinh(x / 100), 1).ravel() for x in (a, b)))[0, 1]


# Times

def test_times_are_utc():
    "34 s between TAI and UTC until July 2012, 35, 36 and 37 after that (IERS Bulletin C)"
    times = utc(["2011-01-01T00:00:02.34Z", "2011-01-01T00:00:02", "2011.01.01_00:00:34_TAI", "2013.01.01_00:00:35_TAI", "2016.01.01_00:00:36.25_TAI", "2018.01.01_00:00:37_TAI"])
    assert [str(t) for t in times] == ["2011-01-01 00:00:02.340000", "2011-01-01 00:00:02", "2011-01-01 00:00:00", "2013-01-01 00:00:00", "2016-01-01 00:00:00.250000", "2018-01-01 00:00:00"]


@pytest.mark.parametrize("text", ["MISSING", "", None, "2011-13-41T00:00:00Z", "2011.01.99_00:00:34_TAI", float("nan"), 12])
def test_times_that_are_none_are_nat(text):
    good, bad = utc(["2011-01-01T00:00:02Z", text])
    assert str(good) == "2011-01-01 00:00:02" and (bad is pd.NaT or bad.year < 1971)


def test_tilt_equals_sunpy():
    from sunpy.coordinates import sun
    times = pd.to_datetime(["2010-05-13 07:31:00", "2014-09-08 23:59:59", "2014-12-07 12:00:00", "2019-01-01 00:00:00"])
    np.testing.assert_allclose(tilts(times), [sun.B0(str(t)).to_value("deg") for t in times], atol=1e-3)


# Version 1

@pytest.mark.parametrize("layout", ["{t:%Y}/AIA/0171/{t:%m}/{t:%d}", "{t:%Y}/AIA_0171/{t:%m}/{t:%d}", "{t:%Y}/{t:%m}/{t:%d}", "."])
def test_v1_in_any_layout(tmp_path, layout):
    p = open_sdoml(write_v1(tmp_path, layout=layout))
    assert list(p.catalogue.channel) == ["171"] * 3 + ["hmi_m"] * 3
    assert list(p.catalogue.time[:3]) == list(hours(3))
    assert p.catalogue.time.dt.tz is None


def test_v1_is_in_our_units_and_the_right_way_up(tmp_path):
    p = open_sdoml(write_v1(tmp_path))
    ours, truth = p.read(1), expected(hours(3)[1])
    assert ours.dtype == np.float32
    assert agreement(ours, truth) > 0.99 > agreement(ours[::-1], truth)
    assert np.median(ours[20:44, 20:44]) == pytest.approx(np.median(truth[20:44, 20:44]), rel=0.05)
    assert list(p.catalogue.unit.unique()) == ["DN/s", "Gauss"]
    assert (p.read(3) == 7).all()  # HMI is a mean, not a sum


@pytest.mark.parametrize("rsun", [944.0, 976.0])
def test_disk_is_where_the_scripts_put_it(rsun):
    "In July and in January the scaled and binned Sun lies where `sdoml_disk` says, to 0.05 px"
    y, x = np.indices((1024, 1024))
    sun = np.clip(rsun / 2.4 - np.hypot(x - 511.5, y - 511.5) + 0.5, 0, 1)
    scale = 976 / rsun
    scaled = affine_transform(sun, [1 / scale, 1 / scale], offset=-512 * (1 - scale) / scale, order=1, mode="nearest")
    binned, disk = scaled.reshape(512, 2, 512, 2).mean((1, 3)), sdoml_disk(512)
    y, x = np.indices((512, 512))
    found = [(x * binned).sum() / binned.sum(), (y * binned).sum() / binned.sum(), np.sqrt(binned.sum() / np.pi)]
    np.testing.assert_allclose(found, [disk.x, disk.y, disk.radius], atol=0.05)


def test_transverse_field_is_left_out_and_said(tmp_path):
    p = open_sdoml(write_v1(tmp_path))
    assert p.skipped.source.str.endswith("_bx.npz").all() and len(p.skipped) == 3
    assert (p.skipped.reason == "channel bx is none of those in packager.channels").all()


def test_v1_names_that_are_no_frames(tmp_path):
    write_v1(tmp_path, n=1)
    for name in ("irradiance.npz", "AIA20141301_0000_0171.npz", "AIA20140101_0000_0999.npz"):
        np.savez(tmp_path / name, x=np.zeros((SIZE, SIZE)))
    p = open_sdoml(tmp_path)
    assert len(p) == 2 and len(p.skipped) == 4


# Version 2

def test_v2_catalogue(tmp_path):
    p = open_sdoml(write_v2(tmp_path / "sdomlv2.zarr"))
    c = p.catalogue
    aia, hmi = c[c.channel == "171"], c[c.channel == "hmi_m"]
    assert list(c.frame) == list(range(8)) and p.size == SIZE
    np.testing.assert_allclose(aia.exptime, 1.999601)
    np.testing.assert_allclose(aia.degradation, [0.9, 0.89, 0.88, 0.87])
    np.testing.assert_allclose(aia.b0, -7.2)
    np.testing.assert_allclose(hmi.b0, tilts(hmi.time))
    assert list(aia.quality) == ["", "", "JSOC: eclipse", "JSOC: eclipse"]
    assert list(hmi.time) == list(hours(4)[::-1])
    assert aia.calibration.str.contains("exposure and degradation").all() and hmi.degradation.isna().all()
    assert c.source[0] == f"{tmp_path}/sdomlv2.zarr/2014/171A[0]"


def test_v2_frames(tmp_path):
    p = open_sdoml(write_v2(tmp_path / "s.zarr"))
    for i, time in enumerate(hours(4)[::-1]):
        assert agreement(p.read(i), expected(time)) > 0.99
        assert (p.read(4 + i) == i).all()
    np.testing.assert_array_equal(p.array[2:6, 3, :5], np.stack([p.read(i)[3, :5] for i in range(2, 6)]))


def test_v2_of_one_year_and_of_several(tmp_path):
    root = write_v2(tmp_path / "s.zarr", n=2, years=("2013", "2014"))
    assert list(open_sdoml(root).catalogue.time.dt.year.unique()) == [2013, 2014]
    assert len(open_sdoml(root / "2014")) == 4
    assert len(open_sdoml(root, channels=["hmi_m"])) == 4


@pytest.mark.parametrize("channels, n", [(["171A"], 2), ("171A", 2), (171, 2), (["Bz", "171"], 4), (["bz"], 2)])
def test_channels_by_their_names_or_ours(tmp_path, channels, n):
    assert len(open_sdoml(write_v2(tmp_path / "s.zarr", n=2), channels=channels)) == n


def test_v2_by_url(tmp_path):
    root = write_v2(tmp_path / "s.zarr", n=2)
    np.testing.assert_array_equal(open_sdoml(f"file://{root}").read(1), open_sdoml(root).read(1))


def test_v2_from_s3_without_an_account(tmp_path, monkeypatch):
    "Over the S3 protocol, against a local server"
    server, boto3 = pytest.importorskip("moto.server"), pytest.importorskip("boto3")
    pytest.importorskip("obstore")
    root = write_v2(tmp_path / "s.zarr", n=2)
    s3 = server.ThreadedMotoServer(port=0)
    s3.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:{1}".format(*s3.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        owner = boto3.client("s3", aws_access_key_id="owner", aws_secret_access_key="owner", region_name="us-east-1")
        owner.create_bucket(Bucket="public", ACL="public-read")
        for file in root.rglob("*"):
            if file.is_file():
                owner.upload_file(str(file), "public", f"sdomlv2.zarr/{file.relative_to(root)}", ExtraArgs=dict(ACL="public-read"))
        p = open_sdoml("s3://public/sdomlv2.zarr", channels=["171"])
        np.testing.assert_array_equal(p.read(1), open_sdoml(root).read(1))
        with pytest.raises(ValueError, match="s3://public/other.zarr: cannot be opened as SDOML v2"):
            open_sdoml("s3://public/other.zarr")
    finally:
        s3.stop()


def test_v2_with_the_compressor_of_the_original(tmp_path):
    from numcodecs import Blosc
    p = open_sdoml(write_v2(tmp_path / "s.zarr", n=2, compressors=Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE)))
    assert agreement(p.read(0), expected(hours(2)[1])) > 0.99


def test_a_chunk_is_read_once_for_all_its_frames(tmp_path):
    p = open_sdoml(write_v2(tmp_path / "s.zarr", n=6))
    for i in range(6):
        p.read(i, 10, 10, 8)
    assert p.array.block.cache_info().misses == 2
    assert p.array.block.cache_info().maxsize == 4


def test_writing_into_what_was_read_changes_nothing(tmp_path):
    p = open_sdoml(write_v2(tmp_path / "s.zarr", n=2))
    before = p.read(0)
    p.array[0][:] = -1
    np.testing.assert_array_equal(p.read(0), before)


def test_v2_without_times(tmp_path):
    root = write_v2(tmp_path / "s.zarr", attributes=dict(T_OBS=[]))
    with pytest.raises(ValueError, match="s.zarr: looks like SDOML v2, but holds no frame.*4 of 4 frames have no time: T_OBS is missing"):
        open_sdoml(root)


def test_v2_with_too_few_and_broken_times(tmp_path):
    root = write_v2(tmp_path / "s.zarr")
    zarr.open_group(root)["2014/171A"].attrs["T_OBS"] = ["2014-03-01T00:00:00Z", "MISSING", "2014-03-01T12:00:00Z"]
    p = open_sdoml(root)
    aia = p.catalogue[p.catalogue.channel == "171"]
    assert list(aia.source) == [f"{root}/2014/171A[0]", f"{root}/2014/171A[2]"]
    assert "2 of 4 frames have no time" in p.skipped.reason[p.skipped.source == "2014/171A"].item()
    assert agreement(p.read(1), expected(hours(4)[1])) > 0.99  # frame 2 of the store, not frame 1


def test_v2_with_few_header_words(tmp_path):
    root = write_v2(tmp_path / "s.zarr")
    attributes = zarr.open_group(root)["2014/171A"].attrs
    attributes.put(dict(T_OBS=attributes["T_OBS"], EXPTIME=[2.0], QUALITY="good"))
    c = open_sdoml(root).catalogue
    assert c.exptime[0] == 2 and c.exptime[1:].isna().all() and c.degradation.isna().all() and (c.quality == "").all()
    assert c.remarks.str.contains("no QUALITY in the header").all()


def test_v2_arrays_of_another_shape_are_left_out(tmp_path):
    root = write_v2(tmp_path / "s.zarr")
    group = zarr.open_group(root)["2014"]
    group.create_array("193A", shape=(4, SIZE // 2, SIZE // 2), dtype="f4")
    group.create_array("94A", shape=(4,), dtype="f4")
    p = open_sdoml(root)
    assert set(p.catalogue.channel) == {"171", "hmi_m"}
    assert p.skipped.reason[p.skipped.source == "2014/193A"].item() == f"shape (4, {SIZE // 2}, {SIZE // 2}), expected [n, {SIZE}, {SIZE}]"
    assert (p.skipped.source == "2014/94A").any()


def test_v2_twice_the_same_time_is_marked(tmp_path):
    root = write_v2(tmp_path / "s.zarr", attributes=dict(QUALITY=[0] * 4))
    attributes = zarr.open_group(root)["2014/171A"].attrs
    attributes["T_OBS"] = [*attributes["T_OBS"][:3], attributes["T_OBS"][0]]
    assert list(open_sdoml(root).catalogue.quality[:4]) == ["", "", "", "same channel and time as an earlier frame"]


def test_v2_damaged_chunk(tmp_path):
    root = write_v2(tmp_path / "s.zarr")
    (root / "2014/171A/1.0.0").write_bytes(b"not a chunk")
    p = open_sdoml(root)
    assert np.isfinite(p.read(0)).all()
    with pytest.raises(ValueError, match=r"2014/171A, frames from 3: cannot be read as a chunk of SDOML v2.*Fetch it again"):
        p.read(3)


@pytest.mark.parametrize("name", [".zgroup", "2014/.zgroup", "2014/171A/.zarray", "2014/171A/.zattrs"])
def test_v2_damaged_metadata(tmp_path, name):
    "Either a clear error, or the array is left out; never frames of the wrong array"
    root = write_v2(tmp_path / "s.zarr")
    (root / name).write_text('{"half')
    try:
        p = open_sdoml(root)
        assert "171" not in set(p.catalogue.channel)
    except ValueError as e:
        assert "s.zarr" in str(e)


def test_v2_nowhere(tmp_path):
    with pytest.raises(ValueError, match="nowhere.zarr: cannot be opened as SDOML v2.*The public one is s3://"):
        open_sdoml(f"file://{tmp_path}/nowhere.zarr")


# sdoml-lite

def test_lite_catalogue_and_frames(tmp_path):
    folder = write_lite(tmp_path / "sdoml-lite" / "sdoml-lite-001.tar")
    p = open_sdoml(folder)
    c = p.catalogue
    assert list(c.channel) == ["171", "hmi_m"] * 3 and set(c.unit) == {"display"}
    assert list(c.time[::2]) == list(hours(3))
    image = p.read(0)
    assert 0 <= image.min() and image.max() <= 255 and (p.read(1) == 127.5).all()
    values = (image / 255) ** 2 * 4000
    assert agreement(values, expected(hours(3)[0])) > 0.98 > agreement(values[::-1], expected(hours(3)[0]))
    assert c.source_radius[1] / c.source_radius[0] == pytest.approx(1.012, abs=0.001)
    assert "square root" in c.calibration[0] and "JPEG" in c.calibration[1]


def test_lite_of_one_tar_and_names_in_small_letters(tmp_path):
    folder = write_lite(tmp_path / "sdoml-lite-001.tar", n=2)
    with tarfile.open(tmp_path / "sdoml-lite-002.tar", "w") as tar:
        with tarfile.open(tmp_path / "sdoml-lite-001.tar") as old:
            for member in old.getmembers():
                data = old.extractfile(member)
                member.name = "./" + member.name.lower().replace("2014/", "2015/")
                tar.addfile(member, data)
    assert len(open_sdoml(folder)) == 8 and len(open_sdoml(tmp_path / "sdoml-lite-002.tar")) == 4


def test_lite_tar_that_was_cut_off(tmp_path):
    folder = write_lite(tmp_path / "sdoml-lite-001.tar")
    whole = open_sdoml(folder)
    tar = tmp_path / "sdoml-lite-001.tar"
    tar.write_bytes(tar.read_bytes()[:40_000])
    p = open_sdoml(folder)
    assert len(p) == 2 and len(whole) == 6
    assert "cut off" in " ".join(p.skipped.reason)
    np.testing.assert_array_equal(p.read(1), whole.read(1))


def test_lite_tar_that_is_none(tmp_path):
    (tmp_path / "sdoml-lite-001.tar").write_bytes(b"<html>404</html>" * 100)
    with pytest.raises(ValueError, match="looks like sdoml-lite, but holds no frame.*sdoml-lite-001.tar: cut off or damaged after 0 frames"):
        open_sdoml(tmp_path)


def test_lite_members_that_are_no_frames(tmp_path):
    folder = write_lite(tmp_path / "sdoml-lite-001.tar", n=1)
    with tarfile.open(tmp_path / "sdoml-lite-001.tar", "a") as tar:
        for name, data in {"README.md": b"hello", "2014/03/01/1200.AIA_0171.npy": b"\x93NUMPY broken", "2014/13/01/1200.AIA_0171.npy": b"", "2014/03/01/1200.EVE.npy": b""}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    p = open_sdoml(folder, check=True)
    assert len(p) == 3 and len(p.skipped) == 3
    assert "cannot be read as a frame of sdoml-lite" in p.catalogue.quality[2]


# Damage in single files

def damage(path, kind):
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "html":
        path.write_bytes(b"<html>503</html>")
    elif kind == "other key":
        np.savez(path, y=np.zeros((SIZE, SIZE)))
    elif kind == "other shape":
        np.savez(path, x=np.zeros((SIZE, SIZE + 1)))
    elif kind == "one number":
        np.savez(path, x=3.0)
    elif kind == "words":
        np.savez(path, x=np.array([["a", "b"], ["c", "d"]]))
    elif kind == "pickle":
        np.savez(path, x=np.array([object()], dtype=object))


KINDS = ["cut off", "empty", "html", "other key", "other shape", "one number", "words", "pickle"]


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_file_of_v1(tmp_path, kind):
    "Opening works, reading the frame names the file, checking marks it, tiles pass it by; the frame after it is fine"
    write_v1(tmp_path)
    bad = sorted(tmp_path.rglob("*_0171.npz"))[0]  # the first, whose size would be asked for
    damage(bad, kind)
    p = open_sdoml(tmp_path)
    assert p.size == SIZE
    with pytest.raises(ValueError, match=f"{bad.name}.*Fetch it again"):
        p.read(0)
    assert np.isfinite(p.read(1)).all()
    checked = open_sdoml(tmp_path, check=True)
    assert bad.name in checked.catalogue.quality[0] and (checked.catalogue.quality[1:] == "").all()
    assert 0 not in set(Tiles.grid(checked, size=16).table.frame)


def test_all_files_damaged(tmp_path):
    write_v1(tmp_path, n=1)
    for path in tmp_path.rglob("*.npz"):
        damage(path, "html")
    with pytest.raises(ValueError, match="0171.npz: cannot be read as a frame of SDOML v1"):
        open_sdoml(tmp_path)


def test_blank_frames_and_holes_are_marked(tmp_path):
    root = write_v2(tmp_path / "s.zarr", attributes=dict(QUALITY=[0] * 4))
    array = zarr.open_group(root)["2014/171A"]
    array[1], array[2], array[3, :32] = 0, np.nan, np.nan
    c = open_sdoml(root, check=True).catalogue
    assert list(c.quality[:4]) == ["", "blank: not one pixel was measured", "blank: not one pixel was measured", "50.0% of the pixels are NaN"]
    assert c.quality[4].startswith("blank")  # the HMI frame that is all 0


# Which release

def test_what_is_none_of_the_three(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
        open_sdoml(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="found nothing; expected SDOML v1"):
        open_sdoml(tmp_path)
    (tmp_path / "a.fits").touch()
    with pytest.raises(ValueError, match="found a.fits; expected SDOML v1"):
        open_sdoml(tmp_path)
    with pytest.raises(ValueError, match="found a file; expected"):
        open_sdoml(tmp_path / "a.fits")
    with pytest.raises(ValueError, match="channel 9999 is none of those"):
        open_sdoml(write_v1(tmp_path / "v1"), channels=["9999"])
    with pytest.raises(ValueError, match="holds no frame"):
        open_sdoml(tmp_path / "v1", channels=["304"])


def test_one_of_our_own_packages_is_sent_home(tmp_path):
    Package.build([SUN.frame("2014-03-01", size=64)], tmp_path / "p", size=64)
    with pytest.raises(ValueError, match="is a package of ours. Open it with Package.open"):
        open_sdoml(tmp_path / "p")


def test_releases_are_told_apart(tmp_path):
    assert sdoml_release(write_v1(tmp_path / "1", n=1)) == "SDOML v1"
    assert sdoml_release(write_v2(tmp_path / "2.zarr", n=1)) == "SDOML v2"
    assert sdoml_release(write_lite(tmp_path / "3" / "a.tar", n=1)) == "sdoml-lite"


# As one of our packages

@pytest.fixture(params=["v1", "v2", "lite"])
def package(request, tmp_path):
    write = dict(v1=write_v1, v2=lambda path: write_v2(path, attributes=dict(QUALITY=[0] * 4)), lite=lambda path: write_lite(path / "a.tar"))
    return open_sdoml(write[request.param](tmp_path / "store"))


def test_tiles_and_training_frames(package):
    tiles = Tiles.grid(package, size=16)
    images = tiles.images()
    assert images.shape == (len(tiles), 16, 16) and np.isfinite(images).all()
    row = tiles.table.iloc[5]
    np.testing.assert_array_equal(images[5], package.read(row.frame)[row.row:row.row + 16, row.col:row.col + 16])
    frames = load_frames(package, rows=np.flatnonzero(package.catalogue.channel == "171"))
    assert 0 <= frames.min() and frames.max() <= 1 and frames.std() > 0.05
    assert np.abs(tiles.table.lat.dropna()).max() > 45


def test_windows_beyond_the_frame_are_nan(package):
    window = package.read(0, -4, -4, 8)
    assert np.isnan(window[:4]).all() and np.isfinite(window[4:, 4:]).all()


def test_the_array_travels_to_other_processes(package):
    copy = pickle.loads(pickle.dumps(package.array))
    np.testing.assert_array_equal(copy[1], package.array[1])


def test_a_package_of_our_own_can_be_built_from_it(package, tmp_path):
    ours = Package.build(frames_of(package, rows=np.flatnonzero(package.catalogue.channel == "171")), tmp_path / "ours", size=SIZE)
    assert ours.disk.radius == pytest.approx(0.4 * SIZE)
    truth = SUN.frame(ours.catalogue.time[0], size=SIZE, disk=ours.disk).data
    values = ours.read(0) if ours.catalogue.unit[0] == "DN/s" else (ours.read(0) / 255) ** 2 * 4000
    assert agreement(values[8:56, 8:56], truth[8:56, 8:56]) > 0.95


def test_frames_that_cannot_be_read_do_not_stop_the_others(tmp_path, caplog):
    write_v1(tmp_path)
    damage(sorted(tmp_path.rglob("*_0171.npz"))[1], "cut off")
    frames = list(frames_of(open_sdoml(tmp_path, channels=["171"])))
    assert [f.time.hour for f in frames] == [0, 12] and "left out" in caplog.text


def test_training_and_search(tmp_path):
    "An encoder learns from a store of SDOML and finds its tiles again, as on a package of our own"
    from search_sdo.models.train import train
    from search_sdo.search.engine import SearchEngine
    p = open_sdoml(write_v2(tmp_path / "s.zarr", n=12, attributes=dict(QUALITY=[0] * 12)), channels=["171"])
    encoder = train(p, tmp_path / "encoder", epochs=1, tile=16, batch_size=32, progress=False)
    engine = SearchEngine.build(p, encoder, tmp_path / "engine")
    hits = SearchEngine.open(tmp_path / "engine", package=p).search(engine.tiles.images([10])[0], k=1)
    assert hits.table.tile[0] == 10 and hits.table.similarity[0] > 0.999
