"""Training: a run that is killed goes on exactly, one that is divided learns the same, one that goes wrong says so, and no pickle is read."""
import errno
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file

from search_sdo.models import checkpoint, runs
from search_sdo.models import train as training
from search_sdo.models.checkpoint import read_checkpoint, write_checkpoint
from search_sdo.models.encoder import Encoder, make_backbone
from search_sdo.models.loop import Diverged
from search_sdo.models.parallel import SyncNorms
from search_sdo.models.train import METHODS, repeat_run, train, worry
from search_sdo.packager.package import Package
from search_sdo.packager.synthetic import SmallSun

QUICK = dict(tile=16, batch_size=16, steps=12, accelerator="cpu", progress=False)
SMALL = dict(widths=(8, 16), stem=2)


def frames(n=3, size=64, cadence="9D"):
    return SmallSun(seed=0).frames(n=n, cadence=cadence, size=size)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return Package.build(frames(), tmp_path_factory.mktemp("train") / "package", size=64)


def same(a, b):
    "Two encoders agree to the last bit"
    one, other = a.backbone.state_dict(), b.backbone.state_dict()
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def metrics(folder):
    return pd.read_csv(folder / "metrics.csv")


# a run that is killed

RUN = """
import sys, torch
from search_sdo.models.train import train
from search_sdo.packager.package import Package
torch.rand(int(sys.argv[5]))    # dice that were thrown before do not matter
train(Package.open(sys.argv[1]), sys.argv[2], sys.argv[3], tile=16, batch_size=16, steps=40, accumulate=2, seed=3,
      accelerator="cpu", progress=False, save_seconds=float(sys.argv[4]), backbone_options=dict(widths=(8, 16), stem=2), activity=.5, place=.5)
"""


def start(package, out, method, save_seconds, dice=0):
    "A training process of its own: libraries that other tests have loaded round sums in other ways"
    return subprocess.Popen([sys.executable, "-c", RUN, str(package.path), str(out), method, str(save_seconds), str(dice)])


def start_and_kill(package, out, method, at):
    "A training process, killed with SIGKILL once metrics.csv shows step `at`"
    child = start(package, out, method, save_seconds=0)
    while child.poll() is None:
        rows = (out / "metrics.csv").read_text().splitlines()[1:] if (out / "metrics.csv").exists() else []
        if rows and int(rows[-1].split(",")[0]) >= at:
            break
    child.send_signal(signal.SIGKILL)
    return child.wait()


@pytest.mark.parametrize("method", ["byol", "simclr"])
def test_a_killed_run_ends_like_one_that_was_not(package, tmp_path, method):
    out = tmp_path / "killed"
    assert start_and_kill(package, out, method, at=14) == -signal.SIGKILL
    state = read_checkpoint(out / "last.safetensors")
    assert 12 <= state["global_step"] < 40 and not (out / "encoder.json").exists()
    calm = start(package, tmp_path / "calm", method, save_seconds=1e9)
    assert start(package, out, method, save_seconds=0, dice=7).wait() == calm.wait() == 0
    assert same(Encoder.load(out), Encoder.load(tmp_path / "calm"))
    pd.testing.assert_frame_equal(metrics(out), metrics(tmp_path / "calm"), check_exact=True)
    assert metrics(out).step.is_unique and not (out / "last.safetensors").exists()


def test_places_drawn_by_activity_and_the_hint_change_what_is_learned(package, tmp_path):
    plain, busy, placed = (train(package, tmp_path / str(i), backbone_options=SMALL, **QUICK, **more) for i, more in enumerate(({}, dict(activity=.9), dict(place=1.))))
    assert not same(plain, busy) and not same(plain, placed)
    for wrong in (dict(activity=2.), dict(place=-1.)):
        with pytest.raises(ValueError, match="activity=.*, place=.*: expected a share from 0 to 1"):
            train(package, tmp_path / "wrong", backbone_options=SMALL, **QUICK, **wrong)
    assert not (tmp_path / "wrong").exists()


def test_training_leaves_the_dice_of_others_alone(package, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(package, tmp_path, backbone_options=SMALL, **QUICK)
    assert torch.rand(3).equal(expected)


# the folder of a run

def test_a_finished_run_is_returned_and_another_one_is_refused(package, tmp_path, monkeypatch):
    first = train(package, tmp_path, backbone_options=SMALL, **QUICK)
    monkeypatch.setattr(training, "fit", lambda *a, **k: pytest.fail("trained again"))
    assert same(first, train(package, tmp_path, backbone_options=SMALL, **QUICK))
    with pytest.raises(ValueError, match=r"holds a run with lr 0.001, now 0.01. Choose another folder, or train with overwrite=True"):
        train(package, tmp_path, backbone_options=SMALL, lr=1e-2, **QUICK)
    monkeypatch.undo()
    assert not same(first, train(package, tmp_path, backbone_options=SMALL, lr=1e-2, overwrite=True, **QUICK))


def test_an_unfinished_run_with_other_settings_is_refused(package, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "finish_run", lambda *a: None)
    train(package, tmp_path, backbone_options=SMALL, **QUICK)
    with pytest.raises(ValueError, match="holds a run with recipe"):
        train(package, tmp_path, backbone_options=SMALL, recipe="region", **QUICK)


def test_other_frames_are_another_run(package, tmp_path):
    train(package, tmp_path / "run", backbone_options=SMALL, **QUICK)
    other = Package.build(frames(4), tmp_path / "package", size=64)
    with pytest.raises(ValueError, match="holds a run on other frames"):
        train(other, tmp_path / "run", backbone_options=SMALL, **QUICK)


def test_run_json_is_enough_to_repeat_a_run(package, tmp_path):
    first = train(package, tmp_path / "first", "vicreg", backbone_options=SMALL, options=dict(variance=10.), before="2014-01-15", recipe="disk", **QUICK)
    facts = json.loads((tmp_path / "first/run.json").read_text())
    assert {"search_sdo", "torch", "lightning", "python"} <= set(facts["versions"])
    assert facts["steps"] == 12 and facts["precision"] == "32-true" and facts["finished"] and facts["frames"] == 2
    assert same(first, repeat_run(tmp_path / "first/run.json", tmp_path / "second", accelerator="cpu", progress=False))
    facts["checksum"] = "0"
    (tmp_path / "changed.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="not the frames that .* learned from"):
        repeat_run(tmp_path / "changed.json", tmp_path / "third")


# checkpoints

class Trap:
    "Opened as a pickle, it leaves a file behind"
    def __init__(self, path): self.path = path
    def __reduce__(self): return Path.write_text, (self.path, "you ran me")


@pytest.mark.parametrize("write", [lambda trap, path: path.write_bytes(pickle.dumps(trap)), torch.save], ids=["pickle", "torch.save"])
def test_a_malicious_checkpoint_is_refused_and_not_run(package, tmp_path, monkeypatch, write):
    with monkeypatch.context() as m:
        m.setattr(training, "finish_run", lambda *a: None)
        train(package, tmp_path / "run", backbone_options=SMALL, **QUICK)
    write(Trap(tmp_path / "caught"), tmp_path / "run/last.safetensors")
    with pytest.raises(ValueError, match="last.safetensors: not a checkpoint of search_sdo .* Nothing in it was run. Remove it"):
        train(package, tmp_path / "run", backbone_options=SMALL, **QUICK)
    assert not (tmp_path / "caught").exists()


def test_weights_are_no_checkpoint(package, tmp_path):
    train(package, tmp_path, backbone_options=SMALL, **QUICK)
    with pytest.raises(ValueError, match="its format is None"):
        read_checkpoint(tmp_path / "weights.safetensors")


def test_a_checkpoint_keeps_values_types_and_layout(tmp_path):
    weights = torch.rand(3, 2, 4, 4).to(memory_format=torch.channels_last)
    state = dict(weights=weights, one=torch.tensor(3), rng=torch.get_rng_state(), nested=[(1, None), {0: True, "a": 1e-300}], name="ü", empty=torch.empty(0))
    write_checkpoint(state, tmp_path / "last.safetensors")
    again = read_checkpoint(tmp_path / "last.safetensors")
    assert again["weights"].equal(weights) and again["weights"].stride() == weights.stride()
    assert again["rng"].equal(state["rng"]) and again["one"].shape == () and again["empty"].shape == (0,)
    assert {k: again[k] for k in ("nested", "name")} == {k: state[k] for k in ("nested", "name")}


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    write_checkpoint(dict(step=1), path)

    def full(tensors, part, metadata):
        Path(part).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="last.safetensors: could not be written .*No space left.* the checkpoint before it is kept. Make room"):
        write_checkpoint(dict(step=2), path)
    assert read_checkpoint(path) == dict(step=1) and [p.name for p in tmp_path.iterdir()] == [path.name]


# several processes

def two_batches(rank):
    views = torch.rand(2, 8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return views if rank is None else views[:, 4 * rank:4 * rank + 4]


def copies(model):
    return {name: p.grad.clone(memory_format=torch.contiguous_format) for name, p in model.named_parameters() if p.grad is not None}


def gradients(method, rank=None):
    "Gradients of one process with 8 places, or averaged over two with 4 each as DDP does"
    torch.manual_seed(1)
    model = METHODS[method](make_backbone(**SMALL))
    views = two_batches(rank)
    if rank is None:
        model.loss(*views).backward()
        return copies(model)
    class Step(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = SyncNorms().apply(model)
        def forward(self, v): return self.model.loss(*v)
    step = torch.nn.parallel.DistributedDataParallel(Step())
    step(views).backward()
    return copies(model)


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for method in METHODS:
        save_file(gradients(method, rank), f"{folder}/{method}{rank}")
    dist.destroy_process_group()


def test_two_processes_learn_what_one_learns_from_both_halves(tmp_path):
    mp.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    for method in METHODS:
        whole, shared = gradients(method), load_file(tmp_path / f"{method}0")
        assert whole.keys() == shared.keys()
        scale = max(g.abs().max() for g in whole.values())
        for name in whole:
            assert (whole[name] - shared[name]).abs().max() <= 1e-5 * max(1, scale), (method, name)


def test_a_run_on_two_processes(package, tmp_path):
    program = Path(sys.executable).parent / "search-sdo"
    words = [package.path, "--out", tmp_path / "two", "--tile", 16, "--batch-size", 32, "--epochs", 1, "--devices", 2]
    done = subprocess.run([program, "train", *map(str, words)], capture_output=True, text=True, env=os.environ | dict(CUDA_VISIBLE_DEVICES=""))
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "two/run.json").read_text())
    assert facts["processes"] == 2 and facts["finished"] and metrics(tmp_path / "two").step.is_unique
    assert Encoder.load(tmp_path / "two").dim == 256


# loggers

@pytest.fixture
def nobody_called(monkeypatch):
    "A proxy for all traffic that nobody may call"
    calls, server = [], socket.create_server(("127.0.0.1", 0))
    def listen():
        while True:
            try: calls.append(server.accept()[0].recv(200))
            except OSError: return
    threading.Thread(target=listen, daemon=True).start()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{server.getsockname()[1]}")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    yield
    server.close()
    assert calls == []


def test_loggers_write_into_the_folder_and_call_nobody(package, tmp_path, nobody_called):
    import sqlite3
    pytest.importorskip("wandb"), pytest.importorskip("mlflow"), pytest.importorskip("tensorboard")
    train(package, tmp_path, backbone_options=SMALL, loggers=("csv", "tensorboard", "wandb", "mlflow"), **QUICK)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("loss")] == metrics(tmp_path).dropna(subset="loss").step.tolist()
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    db = sqlite3.connect(tmp_path / "mlflow.db")
    assert db.execute("select count(*) from metrics where key = 'loss'").fetchone()[0] == metrics(tmp_path).loss.count()
    db.close()


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_logger_that_is_not_installed_names_its_extra(package, tmp_path, monkeypatch, name):
    monkeypatch.setattr(runs.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=rf'pip install "search_sdo\[{name}\]"'):
        train(package, tmp_path, backbone_options=SMALL, loggers=name, **QUICK)


def test_an_unknown_logger_is_refused(package, tmp_path):
    with pytest.raises(ValueError, match="logger: 'paper' is not known; choose from csv, tensorboard, wandb, mlflow"):
        train(package, tmp_path, backbone_options=SMALL, loggers="paper", **QUICK)


# when it goes wrong

def black_out(monkeypatch, at):
    "From step `at` on, views are not numbers"
    calls, views = [], training.two_views
    def lost(*a, **kw):
        calls.append(1)
        return [v * (torch.nan if len(calls) >= at else 1) for v in views(*a, **kw)]
    monkeypatch.setattr(training, "two_views", lost)


def test_a_run_that_diverges_names_the_step_and_keeps_what_was_before(package, tmp_path, monkeypatch):
    black_out(monkeypatch, at=7)
    with pytest.raises(Diverged, match="the loss is nan at step 7; the run diverged. Try a lower lr than 0.001"):
        train(package, tmp_path, backbone_options=SMALL, save_seconds=0, **QUICK)
    state = read_checkpoint(tmp_path / "last.safetensors")
    assert state["global_step"] == 6 and all(v.isfinite().all() for v in state["state_dict"].values())


class Blind(training.SimSiam):
    "Pulls all features together, as a network does that cheats"
    def loss(self, view1, view2): return (torch.cat([self(view1), self(view2)]) - 1).square().mean()


def test_a_collapse_is_told_once_in_plain_words_while_the_run_lasts(package, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(METHODS, "blind", Blind)
    train(package, tmp_path, "blind", backbone_options=SMALL, lr=.02, **QUICK | dict(steps=120))
    said = [r.message for r in caplog.records if "nearly the same about everything" in r.message]
    assert len(said) == 1 and "lower lr, choose another method" in said[0] and not said[0].startswith("step 120")


def history(**columns):
    n = len(columns["loss"])
    return pd.DataFrame(dict(step=range(0, 10 * n, 10), collapse_level=.3, effective_rank=20.) | columns)


def test_worries():
    falling, rising = np.linspace(5, 1, 20), np.linspace(1, 5, 20)
    assert worry(history(loss=falling)) == {}
    assert list(worry(history(loss=rising), warm=50)) == ["loss"]
    assert list(worry(history(loss=falling, effective_rank=1.2))) == ["collapse"]
    assert worry(history(loss=falling, collapse_level=np.linspace(.99, .91, 20))) != {}
    assert worry(history(loss=falling[:4], collapse_level=[.99, .97, .95, .92])) == {}              # getting better
    assert worry(history(loss=falling, collapse_level=.99), warm=185) == {}                          # one reading is none
    assert list(worry(history(loss=falling, collapse_level=.99), warm=185, final=True)) == ["collapse"]


# strange packages and settings

def test_frames_with_gaps(tmp_path):
    made = frames()
    made[1].data[10:40, 20:50] = np.nan
    made[2].data[:] = np.nan
    train(Package.build(made, tmp_path / "package", size=64), tmp_path / "run", backbone_options=SMALL, **QUICK)
    assert np.isfinite(metrics(tmp_path / "run")[["collapse_level", "effective_rank"]].dropna()).all(axis=None)


def test_a_single_frame(tmp_path):
    encoder = train(Package.build(frames(1), tmp_path / "package", size=64), tmp_path / "run", backbone_options=SMALL, **QUICK)
    assert np.isfinite(encoder.embed(np.ones((2, 16, 16)))).all()


def test_fewer_places_than_a_batch(package, tmp_path):
    train(package, tmp_path, backbone_options=SMALL, **QUICK | dict(batch_size=100_000, steps=2))
    facts = json.loads((tmp_path / "run.json").read_text())
    assert facts["steps"] == 2 and facts["tiles"] < 1000


def test_a_package_with_no_good_frames(package, tmp_path):
    bad = Package(package.path, package.catalogue.assign(quality="off-pointed by 0.3 solar radii"), package.skipped, package.array)
    with pytest.raises(ValueError, match="no good frames; all 3 are flagged, the first for: off-pointed by 0.3"):
        train(bad, tmp_path, **QUICK)


@pytest.mark.parametrize("settings, says", [
    (dict(batch_size=1), "batch_size: 1; a place alone in its batch has nobody to be compared with"),
    (dict(steps=0), "epochs, steps and accumulate: 10, 0, 1; expected 1 or more"),
    (dict(seed=-1), "seed: -1, expected 0 or more"),
    (dict(method="magic"), "method: 'magic' is not known; choose from simclr, dcl, simsiam, byol, vicreg, barlow"),
    (dict(recipe="soup"), "recipe: 'soup' is not known; choose from tile, region, disk"),
    (dict(recipe=dict(zooom=2)), "options of recipe: .*zooom"),
    (dict(options=dict(temprature=.1)), "options of simclr: .*temprature"),
    (dict(before="2010-05-01"), "no good frames of channel 171 before 2010-05-01"),
    (dict(channel="304"), "no good frames of channel 304; it has 171 from"),
], ids=lambda v: str(v)[:30])
def test_settings_that_make_no_sense(package, tmp_path, settings, says):
    with pytest.raises(ValueError, match=says):
        train(package, tmp_path, **QUICK | settings)


@pytest.mark.parametrize("settings", [dict(accumulate=3, clip=1.), dict(scale=2), dict(within=.6), dict(recipe="region"), dict(method="dcl", options=dict(temperature=.5))], ids=str)
def test_settings_that_change_the_run(package, tmp_path, settings):
    "Each trains, and gives another encoder than without it"
    plain = train(package, tmp_path / "plain", backbone_options=SMALL, **QUICK | dict(steps=3))
    assert not same(plain, train(package, tmp_path / "changed", backbone_options=SMALL, **QUICK | dict(steps=3) | settings))


def test_several_channels_at_once(tmp_path):
    from dataclasses import replace
    both = [f for frame in frames() for f in (frame, replace(frame, channel="193"))]
    package = Package.build(both, tmp_path / "package", size=64)
    with pytest.raises(ValueError, match="holds channels 171, 193; choose one with channel="):
        train(package, tmp_path / "run", **QUICK)
    encoder = train(package, tmp_path / "run", backbone_options=SMALL, channel=["193", "171"], **QUICK)
    assert encoder.channels == ("193", "171") and encoder.embed(np.ones((2, 2, 16, 16))).shape == (2, 16)


# sweeps

@pytest.fixture(scope="module")
def year(tmp_path_factory):
    return Package.build(frames(12), tmp_path_factory.mktemp("sweep") / "package", size=64)


@pytest.fixture
def quick_sweep(year, tmp_path):
    pytest.importorskip("optuna")
    from search_sdo.models.sweep import sweep
    return lambda trials, space={"lr": (1e-4, 1e-2)}, **kw: sweep(year, tmp_path / "sweep", space, trials, backbone_options=SMALL, **QUICK | dict(steps=2) | kw)


def test_a_sweep_goes_on_and_ranks_by_the_score(quick_sweep, tmp_path):
    assert len(quick_sweep(2)) == 2
    table = quick_sweep(4)
    assert sorted(table.trial) == [0, 1, 2, 3] and table.score.is_monotonic_decreasing and table.lr.between(1e-4, 1e-2).all()
    assert len(quick_sweep(3)) == 4                                        # nothing left to do
    assert {"study.db", "sweep.csv", "sweep.png", "trials"} <= {p.name for p in (tmp_path / "sweep").iterdir()}
    assert Encoder.load(tmp_path / "sweep/trials" / f"{table.trial[0]:03d}").size == 16
    with pytest.raises(ValueError, match="holds a sweep with space"):
        quick_sweep(5, space={"lr": (1e-4, 1e-3)})


def test_the_exam_is_later_than_all_that_was_learned_from(quick_sweep, year, tmp_path):
    quick_sweep(1)
    before = pd.Timestamp(json.loads((tmp_path / "sweep/trials/000/run.json").read_text())["settings"]["before"])
    start = pd.Timestamp(json.loads(__import__("sqlite3").connect(tmp_path / "sweep/study.db").execute("select value_json from study_user_attributes where key = 'about'").fetchone()[0])["start"])
    assert start - before >= pd.Timedelta("27D") and start <= year.catalogue.time.max()


def test_a_trial_that_diverges_is_written_down_and_the_study_goes_on(quick_sweep, monkeypatch):
    with monkeypatch.context() as m:
        black_out(m, at=2)
        table = quick_sweep(1)
    assert table.score.isna().all() and "the loss is nan at step 2" in table.failed[0]
    assert quick_sweep(2).failed.tolist() == ["", table.failed[0]]


def test_a_sweep_that_is_killed_takes_up_its_trial(quick_sweep, monkeypatch, tmp_path):
    quick_sweep(1)
    with monkeypatch.context() as m:
        m.setattr(training, "two_views", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            quick_sweep(2)
    stopped = json.loads((tmp_path / "sweep/trials/001/run.json").read_text())["settings"]
    table = quick_sweep(2)
    assert len(table) == 2 and table.set_index("trial").lr[2] == stopped["lr"]


def test_labels_can_be_the_judge(quick_sweep):
    table = quick_sweep(1, labels=SmallSun(seed=0).label, k=3)
    assert 0 < table.score[0] < 1


@pytest.mark.parametrize("space, says", [({"lrr": (1, 2)}, "space: 'lrr' is not known; choose from"), ({"lr": (1, 1)}, "space: lr is .*expected a pair"), ({"lr": .1}, "expected a pair")])
def test_a_space_that_makes_no_sense(quick_sweep, space, says):
    with pytest.raises(ValueError, match=says):
        quick_sweep(1, space=space)
