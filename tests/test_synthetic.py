"The small Sun keeps its promises: same seed same Sun, the picture agrees with the truth, it turns by the law."
from datetime import datetime
import numpy as np
import pandas as pd
import pytest
from search_sdo.packager.frame import Disk, find_disk
from search_sdo.packager.synthetic import (Feature, SmallSun, births, days, direction, draw, expose, in_space, loops, noise_box,
                                           rotation_rate, splat, sun_plane, surface)

QUIET = dict(noise=False)


class OneThing(SmallSun):
    "A Sun with nothing on it but what we put there"
    def __init__(self, *things): super().__init__(noise=False); self.things = things
    def features(self, day): return list(self.things)


def thing(kind, lon=0, lat=0, radius=10, strength=1., tilt=0., day=days('2014-01-01')):
    return Feature(1, kind, day - 10, 30, lon - 10 * rotation_rate(lat), lat, radius, strength, tilt, 5)


def one_tile(lon, lat, size=16, frame=256):
    x, y, _ = direction(lon, lat)
    corner = lambda v: round((frame - 1) / 2 + v * .4 * frame - (size - 1) / 2)
    return pd.DataFrame(dict(row=[corner(-y)], col=[corner(x)], size=[size], time=[pd.Timestamp('2014-01-01')]))


def test_the_same_seed_and_time_give_the_same_picture_whatever_was_drawn_before():
    fresh, used = SmallSun(3, gaps=2), SmallSun(3, gaps=2)
    used.frames(2, size=32)
    a, b = fresh.frame('2015-06-01', 64).data, used.frame('2015-06-01', 64).data
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, SmallSun(4, gaps=2).frame('2015-06-01', 64).data, equal_nan=True)


def test_the_global_random_state_is_left_alone():
    before = np.random.get_state()[1].copy()
    SmallSun(0).frame('2014-01-01', 32)
    np.testing.assert_array_equal(before, np.random.get_state()[1])


def test_a_frame_says_what_it_is():
    frame = SmallSun(0).frame('2014-02-25 12:00', 64)
    assert (frame.channel, frame.unit, frame.shape, frame.time) == ('171', 'DN/s', (64, 64), datetime(2014, 2, 25, 12))
    assert frame.data.dtype == np.float32 and np.isfinite(frame.data).all()
    assert frame.disk == Disk(31.5, 31.5, 25.6)


def test_frames_come_at_their_cadence():
    assert [f.time.day for f in SmallSun(0).frames(3, '2014-01-01', '5D', 32)] == [1, 6, 11]


def test_brightness_is_of_the_size_that_aia_sees_at_171():
    light = np.concatenate([f.data[np.hypot(*sun_plane(f.shape, f.disk)) < .9] for f in SmallSun(0).frames(6, '2014-01-01', '20D')])
    assert 70 < np.median(light) < 200
    assert 900 < np.percentile(light, 99.9) < 10000


@pytest.mark.parametrize('lat', [-60, -15, 0, 40])
def test_rotation_equals_sunpys_law(lat):
    u = pytest.importorskip('astropy.units')
    from sunpy.sun.models import differential_rotation
    law = differential_rotation(1 * u.day, lat * u.deg, model='snodgrass', frame_time='synodic')
    assert rotation_rate(lat) == pytest.approx(law.to_value('deg'), abs=1e-3)


@pytest.mark.parametrize('lat', [0, 30, -50])
def test_the_picture_turns_at_the_rate_of_its_latitude(lat):
    sun = OneThing()
    strip = lambda time: np.array(sun.frame(time, 512).data[row, col], float)
    lon = np.arange(-40, 40, .1)
    x, y, _ = direction(lon, np.full_like(lon, lat))
    row, col = np.rint(255.5 - 204.8 * y).astype(int), np.rint(255.5 + 204.8 * x).astype(int)
    first, later = np.log(strip('2014-01-05')), np.log(strip('2014-01-06'))
    shifts = np.arange(60, 200)
    match = [np.corrcoef(first[:-s], later[s:])[0, 1] for s in shifts]
    assert max(match) > .5
    assert shifts[np.argmax(match)] * .1 == pytest.approx(rotation_rate(lat), abs=.4)


@pytest.mark.parametrize('lon, lat', [(0, 10), (25, -20), (-35, 25)])
def test_a_region_shines_where_the_truth_says(lon, lat):
    where = OneThing(thing('active_region', lon, lat))
    at = where.truth('2014-01-01').iloc[0]
    assert (at.lon, at.lat) == (pytest.approx(lon), lat)
    extra = where.frame('2014-01-01').data - OneThing().frame('2014-01-01').data
    extra -= loops(extra.shape, Disk(127.5, 127.5, 102.4), where.things, days('2014-01-01'))
    x, y = sun_plane(extra.shape, Disk(127.5, 127.5, 102.4))
    seen = surface((x * extra).sum() / extra.sum(), (y * extra).sum() / extra.sum())
    assert seen[:2] == (pytest.approx(lon, abs=1.2), pytest.approx(lat, abs=1.2))


@pytest.mark.parametrize('kind', ['coronal_hole', 'filament'])
def test_holes_and_filaments_are_dark_where_the_truth_says(kind):
    missing = OneThing().frame('2014-01-01').data - OneThing(thing(kind, 20, 15, 16)).frame('2014-01-01').data
    x, y = sun_plane(missing.shape, Disk(127.5, 127.5, 102.4))
    lon, lat, _ = surface((x * missing).sum() / missing.sum(), (y * missing).sum() / missing.sum())
    assert missing.min() > -60 and (lon, lat) == (pytest.approx(20, abs=3), pytest.approx(15, abs=3))


@pytest.mark.parametrize('disk', [Disk(140, 110, 80), Disk(127.5, 127.5, 102.4, roll=70), Disk(118.2, 131.7, 95.3, roll=-20)])
def test_the_disk_is_where_it_was_ordered(disk):
    found = find_disk(np.sqrt(SmallSun(0, **QUIET).frame('2014-02-25', 256, disk).data), channel='171')
    assert (found.x, found.y) == (pytest.approx(disk.x, abs=.5), pytest.approx(disk.y, abs=.5))
    assert found.radius == pytest.approx(disk.radius, rel=.01)


def test_a_roll_of_a_quarter_turn_is_a_quarter_turn():
    upright = SmallSun(0, **QUIET).frame('2014-02-25', 128).data
    rolled = SmallSun(0, **QUIET).frame('2014-02-25', 128, Disk(63.5, 63.5, 51.2, roll=90)).data
    np.testing.assert_allclose(np.rot90(rolled), upright, rtol=2e-2, atol=1)    # turned anticlockwise, north is up again


def test_roll_means_what_sunpy_means():
    disk = Disk(127.5, 127.5, 102.4, roll=25)
    rolled = SmallSun(0, **QUIET).frame('2014-02-25', 256, disk)
    upright = rolled.to_map().rotate(missing=0.)
    centre = upright.data.shape[0] // 2
    a, b = upright.data[::-1][centre - 90:centre + 90, centre - 90:centre + 90], SmallSun(0, **QUIET).frame('2014-02-25').data[38:218, 38:218]
    assert np.corrcoef(np.log(a + 50).ravel(), np.log(b + 50).ravel())[0, 1] > .9


def test_gaps_are_nan_and_only_where_ordered():
    assert np.isfinite(SmallSun(0).frame('2014-01-01', 64).data).all()
    lost = np.isnan(SmallSun(0, gaps=3).frame('2014-01-01', 64).data)
    assert 64 <= lost.sum() <= 3 * 64


def test_noise_is_that_of_photons():
    grey = expose(np.full((300, 300), 400.), np.random.default_rng(0))
    assert grey.mean() == pytest.approx(400, rel=.005)
    assert grey.std() == pytest.approx(np.sqrt(400 * 1.1 / 2 + .25), rel=.02)


def test_things_are_born_all_along_and_none_lives_for_ever():
    sun = SmallSun(0)
    ids = [set(sun.truth(t).id) for t in pd.date_range('2010-01-01', '2020-01-01', freq='200D')]
    assert all(len(i) > 10 for i in ids)
    assert all(not a & b for a, b in zip(ids, ids[1:]))


def test_births_before_2010_exist():
    assert births(0, -30) == births(0, -30) and len(SmallSun(0).truth('1999-12-31')) > 10


def test_a_region_comes_up_and_fades_away():
    f = thing('active_region')
    power = [f.power(f.born + share * f.life) for share in (-.1, .06, .3, .9, 1.1)]
    assert power == pytest.approx([0, .5, 1, .1 / .35, 0])


def test_loops_behind_the_sun_are_hidden_and_above_the_limb_seen():
    disk, day = Disk(63.5, 63.5, 51.2), days('2014-01-01')
    lit = lambda lon: loops((128, 128), disk, [thing('active_region', lon)], day)
    sky = np.hypot(*sun_plane((128, 128), disk)) > 1.02
    assert lit(160).sum() == 0
    assert lit(88)[sky].sum() > .1 * lit(88).sum() > 0


def test_splat_keeps_the_light_and_survives_points_outside():
    points = in_space(thing('active_region', 10, 5), *np.random.default_rng(0).uniform(-.5, .5, (3, 200)), days('2014-01-01'))
    assert splat((64, 64), Disk(31.5, 31.5, 25), points, np.ones(200)).sum() == pytest.approx(200)
    assert splat((64, 64), Disk(-900, 31.5, 25), points, np.ones(200)).sum() == 0


@pytest.mark.parametrize('kind, label', [('active_region', 'active_region'), ('coronal_hole', 'coronal_hole'),
                                         ('filament', 'filament'), ('plage', 'quiet_sun')])
def test_the_tile_on_a_feature_has_its_name(kind, label):
    sun = OneThing(thing(kind, 20, 15, 16))
    assert list(sun.label(one_tile(20, 15), 256)) == [label]
    assert list(sun.label(one_tile(-30, -20), 256)) == ['quiet_sun']


def test_the_limb_and_the_sky_have_their_names():
    assert list(OneThing(thing('active_region', 90, 0)).label(one_tile(90, 0), 256)) == ['limb']
    corner = pd.DataFrame(dict(row=[0], col=[0], size=[16], time=['2014-01-01']))
    assert list(OneThing().label(corner, 256)) == ['off_disk']


def test_a_tile_of_scale_2_is_named_after_all_that_it_covers():
    grid = [(r, c) for r in range(0, 256, 16) for c in range(0, 256, 16)]
    fine = pd.DataFrame(grid, columns=['row', 'col']).assign(size=16, scale=1., time=pd.Timestamp('2014-01-01'))
    labels = SmallSun(0).label(fine, 256)
    assert labels.nunique() > 3 and labels.equals(SmallSun(0).label(fine.drop(columns='scale'), 256))
    pd.testing.assert_series_equal(SmallSun(0).label(fine.assign(size=8, scale=2.), 256), labels)


def test_labels_keep_the_tables_index_and_every_class_occurs():
    grid = [(r, c) for r in range(0, 256, 16) for c in range(0, 256, 16)]
    table = pd.concat([pd.DataFrame(grid, columns=['row', 'col']).assign(size=16, time=t) for t in pd.date_range('2014-01-01', periods=6, freq='20D')])
    table.index = np.arange(len(table))[::-1]
    labels = SmallSun(0).label(table, 256)
    assert labels.index.equals(table.index)
    assert set(labels) == {'active_region', 'coronal_hole', 'filament', 'quiet_sun', 'limb', 'off_disk'}


def test_brightness_alone_does_not_decide():
    "Some active-region tiles are fainter than the brightest quiet ones, and some quiet ones darker than some holes"
    sun = SmallSun(0)
    frames = sun.frames(12, '2014-01-01', '17D')
    grid = [(r, c) for r in range(32, 224, 16) for c in range(32, 224, 16)]
    table = pd.concat([pd.DataFrame(grid, columns=['row', 'col']).assign(size=16, time=f.time, n=i) for i, f in enumerate(frames)], ignore_index=True)
    mean = np.array([frames[n].data[r:r + 16, c:c + 16].mean() for n, r, c in table[['n', 'row', 'col']].values])
    by = pd.Series(mean).groupby(sun.label(table, 256))
    assert by.quantile(.1)['active_region'] < by.quantile(.98)['quiet_sun']
    assert by.quantile(.9)['coronal_hole'] > by.quantile(.05)['quiet_sun']
    assert by.quantile(.9)['filament'] > by.quantile(.3)['quiet_sun']


def test_the_noise_box_has_no_seam():
    box = noise_box(np.random.default_rng(0), 32)
    step = lambda a, b: np.abs(a - b).mean()
    assert step(box[0], box[-1]) < 1.2 * step(box[0], box[1])
    assert box.std() == pytest.approx(1, abs=1e-3)


def test_drawing_far_from_any_feature_works():
    assert np.isfinite(draw(OneThing(), '2031-05-05', 48).data).all()


def test_no_coronal_hole_reaches_into_anything_else():
    sun, day = SmallSun(0), days('2014-03-01')
    alive = sun.features(day)
    holes, rest = [[f for f in alive if (f.kind == 'coronal_hole') == is_hole] for is_hole in (True, False)]
    assert holes
    for h in holes:
        for f in rest:
            away = np.degrees(np.arccos(direction(h.lon_at(day), h.lat) @ direction(f.lon_at(day), f.lat)))
            assert h.radius <= away - .5 * f.radius + 1e-6


def test_a_date_may_be_a_string_of_numpys():
    assert SmallSun(seed=0).frame(np.array(["2014-02-25"])[0], size=32).time == pd.Timestamp("2014-02-25")
