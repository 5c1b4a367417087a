"The demo leaves one page that needs nothing but itself."
from html.parser import HTMLParser
import numpy as np
import pandas as pd
import pytest
from search_sdo import demo
from search_sdo.packager.synthetic import SmallSun

TINY = dict(size=128, tile=16, epochs=1)


class Page(HTMLParser):
    "Counts tags and gathers every address that a browser would load"
    def __init__(self, text):
        super().__init__()
        self.count, self.loads, self.open = {}, [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.loads += [v for k, v in attrs if k in ('src', 'href', 'srcset', 'data', 'poster')]
        if tag not in ('meta', 'img'): self.open.append(tag)
    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f'</{tag}> closes nothing'


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    return demo.run_demo(out=tmp_path_factory.mktemp('demo') / 'run', n=14, **TINY)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    "A folder of PNG files with a time in their names, as from an archive"
    from PIL import Image
    from search_sdo.packager.channels import stretch
    folder = tmp_path_factory.mktemp('pictures')
    for frame in SmallSun(1).frames(10, '2014-01-01', '15D', 256):
        Image.fromarray((255 * stretch(frame.data, '171')).astype(np.uint8)).save(folder / f'{frame.time:%Y%m%d_%H%M%S}_aia_171.png')
    return folder


def test_the_report_is_one_whole_file_that_loads_nothing(small):
    text = small.read_text(encoding='utf-8')
    page = Page(text)
    assert not page.open
    assert page.loads and all(address.startswith('data:image/jpeg;base64,') for address in page.loads)
    assert 'url(' not in text and '@import' not in text and '<script' not in text
    assert len(text) < 5e6


def test_it_holds_three_searches_three_curves_and_the_scores(small):
    page, text = Page(small.read_text(encoding='utf-8')), small.read_text(encoding='utf-8')
    assert page.count['article'] == 3 and text.count('class="chart"') == 3 and page.count['rect'] == 3
    assert 'Precision@10' in text and 'guessing' in text and 'none of them is an observation' in text


def test_a_second_run_trains_and_draws_nothing_again(small, monkeypatch):
    import search_sdo.models.train
    monkeypatch.setattr(search_sdo.models.train, 'train', lambda *a, **k: pytest.fail('trained again'))
    monkeypatch.setattr(SmallSun, 'frame', lambda *a, **k: pytest.fail('drew again'))
    weights = (small.parent / 'encoder/weights.safetensors').stat().st_mtime_ns
    demo.run_demo(out=small.parent, n=14, **TINY)
    assert (small.parent / 'encoder/weights.safetensors').stat().st_mtime_ns == weights


def test_on_real_pictures_it_says_that_there_is_no_truth(pictures, tmp_path):
    text = demo.run_demo(pictures, tmp_path / 'run', **TINY).read_text(encoding='utf-8')
    assert text.count('<article>') == 3
    assert 'nobody wrote down what is where' in text and 'Precision@10' not in text
    assert 'courtesy of NASA/SDO' in text and 'drawn by' not in text


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / 'nothing').mkdir()
    with pytest.raises(ValueError, match='nothing: no frames'): demo.run_demo(tmp_path / 'nothing', tmp_path / 'run', **TINY)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'): demo.run_demo(tmp_path / 'nowhere', tmp_path / 'run', **TINY)


def test_frames_of_a_few_days_are_too_few(tmp_path):
    with pytest.raises(ValueError, match='two months'): demo.run_demo(SmallSun(0).frames(4, '2014-01-01', '1D', 64), tmp_path / 'run', **TINY)


def test_answers_come_only_from_before_the_gap(small):
    from search_sdo.search.engine import SearchEngine
    engine = SearchEngine.open(small.parent / 'engine')
    early, late = demo.split_dates(engine.package.catalogue.time)
    found, _ = demo.answers(engine, [('', '', int(np.flatnonzero(engine.tiles.table.time >= late)[0]))], early)
    assert (found[0][3].table.time < early).all() and (late - early).days == 27


def test_measure_agrees_with_counting_by_hand(small):
    "A method that knows the class is right always; the encoder's score equals a plain count"
    from search_sdo.search.engine import SearchEngine
    engine = SearchEngine.open(small.parent / 'engine')
    early, late = demo.split_dates(engine.package.catalogue.time)
    labels, table = SmallSun(0).label(engine.tiles), engine.tiles.table
    score = demo.measure(engine, labels, early, late).loc['the encoder', 'limb']
    rows = lambda keep: demo.balanced(labels, keep.to_numpy())
    ask, answer = rows(table.time >= late), rows(table.time < early)
    vectors = np.asarray(engine.embeddings.vectors, np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ask = ask[labels.to_numpy()[ask] == 'limb']
    best = answer[np.argsort(-vectors[ask] @ vectors[answer].T, axis=1, kind='stable')[:, :10]]
    assert score == pytest.approx((labels.to_numpy()[best] == 'limb').mean(), abs=.01)


@pytest.mark.parametrize('ours, word', [(.8, 'has learned'), (.6, 'no better'), (.4, 'worse')])
def test_the_verdict_is_honest(ours, word):
    scores = pd.DataFrame(dict(macro=[ours, .6, .3, .2]), index=['the encoder', 'histogram of brightness', 'mean and spread', 'guessing'])
    assert word in demo.verdict(scores)


@pytest.mark.parametrize('low, high', [(0, 1), (4.2, 5.6), (0, 213), (-3, 1e-3), (5., 5.3)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = demo.round_ticks(low, high)
    assert 2 <= len(ticks) <= 8 and ticks.min() >= low - 1e-9 and ticks.max() <= high + 1e-9


def test_a_curve_of_one_point_can_be_drawn():
    assert 'NaN' not in demo.line_chart([0], [1.], 't', 'y') and 'nan' not in demo.line_chart([3], [0.], 't', 'y', 0)


def test_the_three_questions_do_not_overlap(small):
    from search_sdo.search.engine import SearchEngine
    engine = SearchEngine.open(small.parent / 'engine')
    early, late = demo.split_dates(engine.package.catalogue.time)
    for asked in (demo.ask_by_truth(SmallSun(0), engine.tiles.table, SmallSun(0).label(engine.tiles), late), demo.ask_by_look(engine, early, late)):
        tiles = engine.tiles.table.loc[[number for _, _, number in asked]]
        assert len(tiles) == 3 and tiles.frame.nunique() == 1 and (tiles.time >= late).all()
        assert not any(demo.touch(tiles.iloc[i], tiles.iloc[j]) for i in range(3) for j in range(i))


def test_a_folder_that_is_not_the_demos_own_is_left_alone(tmp_path):
    (tmp_path / 'run/package').mkdir(parents=True)
    (tmp_path / 'run/package/mine.txt').write_text('precious')
    with pytest.raises(ValueError, match='not from a demo'): demo.run_demo(out=tmp_path / 'run', n=14, **TINY)
    assert (tmp_path / 'run/package/mine.txt').read_text() == 'precious'


def test_other_settings_start_afresh(small, tmp_path):
    demo.clear_for(dict(n=1), tmp_path / 'p')
    (tmp_path / 'p/old').write_text('')
    demo.clear_for(dict(n=1), tmp_path / 'p')
    assert (tmp_path / 'p/old').exists()
    demo.clear_for(dict(n=2), tmp_path / 'p')
    assert not (tmp_path / 'p/old').exists()
