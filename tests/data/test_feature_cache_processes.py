"""The feature cache across processes: kills, several at once, Ctrl-C, memory."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile
import torch
from caches import Recorder, assert_same, entries, write_clips
from safetensors.numpy import load_file
from sounds import tone

from peft_audio.data import FeatureCache, extract_features, feature_cache, load_waveform


def test_the_random_numbers_of_training_do_not_depend_on_the_cache(tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    FeatureCache(tmp_path / "cache", num_workers=2).compute(write_clips(tmp_path))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_the_number_of_workers_follows_cores_and_clips(monkeypatch):
    monkeypatch.setattr(feature_cache.joblib, "cpu_count", lambda: 4)
    counts = [FeatureCache("cache")._count_workers(clips) for clips in (0, 3, 15, 16, 24, 1000)]
    assert counts == [0, 0, 0, 2, 3, 4]
    assert [FeatureCache("cache", num_workers=wanted)._count_workers(5) for wanted in (0, 1, 3, 9)] == [0, 1, 3, 5]


@pytest.fixture
def start():
    """Starts another process, with a process group of its own, that computes the features of clips."""
    if not hasattr(os, "fork"):
        pytest.skip("the test starts its processes by os.fork")
    processes = []

    def run(cache, clips):
        os.setsid()
        # All forks share tqdm's own lock, and who is killed while he holds it would stop the others.
        feature_cache.tqdm.set_lock(threading.RLock())
        cache.compute(clips)

    def start(cache, clips):
        processes.append(multiprocessing.get_context("fork").Process(target=run, args=(cache, clips)))
        processes[-1].start()
        return processes[-1]

    yield start
    for process in processes:
        if process.is_alive():
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return value


def stop(process, number):
    """Sends a signal to the group of the process, and waits for the end of it and its children. Returns their number."""
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)
    process.join(20)
    wait_for(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in children))
    return len(children)


def write_slowly(path, content):
    with path.open("wb", buffering=0) as file:
        for position in range(0, len(content), 8192):
            file.write(content[position : position + 8192])
            time.sleep(0.002)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_after_a_kill_in_mid_write_only_what_is_missing_is_computed(
    tmp_path, recorder, start, monkeypatch, num_workers
):
    monkeypatch.setattr(Recorder, "copies", 40)  # 256 kB a clip
    clips = write_clips(tmp_path / "audio", 12)
    folder = tmp_path / "cache"
    cache = FeatureCache(folder, recorder, num_workers=num_workers)
    done = 0
    for _ in range(3):
        partial = set(folder.glob("*/partial/*"))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", write_slowly)  # so the kill comes in time
            process = start(cache, clips)
        wait_for(lambda: len(entries(folder)) > done)  # noqa: B023
        wait_for(lambda: [path for path in folder.glob("*/partial/*") if path not in partial])  # noqa: B023
        assert stop(process, signal.SIGKILL) == num_workers
        assert process.exitcode == -signal.SIGKILL
        done = len(entries(folder))
    assert any(path.stat().st_size < 40 * 6400 for path in folder.glob("*/partial/*"))
    assert 3 <= done < 12
    assert all(load_file(path)["input_values"].shape == (40, 1600) for path in entries(folder))
    recorder.calls()
    features = cache.compute(clips)
    assert recorder.calls() == 12 - done
    assert_same(features, extract_features(clips, recorder)[0])


def test_two_processes_may_fill_a_folder_at_once(tmp_path, recorder, start, monkeypatch):
    clips = write_clips(tmp_path / "audio", 16)
    monkeypatch.setattr(Recorder, "seconds", 0.01)
    processes = [start(FeatureCache(tmp_path / "cache", recorder, num_workers=2), clips) for _ in range(2)]
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert len(entries(tmp_path)) == 16
    assert not list((tmp_path / "cache").glob("*/partial/*"))
    assert recorder.calls() >= 16
    features = FeatureCache(tmp_path / "cache", recorder).compute(clips)
    assert recorder.calls() == 0
    assert_same(features, extract_features(clips, recorder)[0])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ctrl_c_ends_it_and_its_workers(tmp_path, recorder, start, monkeypatch, num_workers):
    clips = write_clips(tmp_path / "audio", 100)
    monkeypatch.setattr(Recorder, "seconds", 0.1)
    process = start(FeatureCache(tmp_path / "cache", recorder, num_workers=num_workers), clips)
    wait_for(lambda: len(entries(tmp_path)) > 1)
    before = time.monotonic()
    assert stop(process, signal.SIGINT) == num_workers
    assert time.monotonic() - before < 8
    assert process.exitcode == 1
    assert 2 <= len(entries(tmp_path)) < 100
    assert not list((tmp_path / "cache").glob("*/partial/*"))


SCRIPT = """
from pathlib import Path

import torch
from peft_audio.data import Clip, FeatureCache


def peak():
    # The most memory since the last call, in bytes.
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    Path("/proc/self/clear_refs").write_text("5")
    return int(line.split()[1]) * 1024


class Energy:
    sampling_rate = 16000

    def to_dict(self):
        return {}

    def __call__(self, waveform, sampling_rate, return_tensors):
        return {"input_values": [(torch.ones(500, 1) * torch.from_numpy(waveform)).square().sum().reshape(1)]}


if __name__ == "__main__":
    clips = [Clip(str(index), Path("long.wav"), (), start=index / 100, stop=index / 100 + 0.1) for index in range(10_000)]
    cache = FeatureCache("waveforms", num_workers=0)
    cache.compute(clips[:10])  # imports what is imported late
    peak()
    for count in (100, 10_000):
        features = cache.compute(clips[:count])
        size = sum(values["waveform"].nbytes for values in features.values())
        print(size, peak())

    torch.set_num_threads(2)
    torch.ones(1000, 1000).exp().sum()  # starts the threads
    features = FeatureCache("energies", Energy(), num_workers=2).compute(clips[:8])
    print(*[values["input_values"][0] for values in features.values()])
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """A sound of 101 seconds, and the numbers that a new Python running `SCRIPT` prints, line by line."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the script reads the peak of its memory from Linux's /proc")
    folder = tmp_path_factory.mktemp("script")
    soundfile.write(folder / "long.wav", tone("low", 101), 16000)
    (folder / "script.py").write_text(SCRIPT)
    paths = os.pathsep.join([str(Path(feature_cache.__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    shutil.rmtree(folder / "waveforms")
    return folder / "long.wav", [[float(number) for number in line.split()] for line in run.stdout.splitlines()]


def test_ten_thousand_clips_take_hardly_more_memory_than_a_hundred(script):
    (small, before), (large, after) = script[1][:2]
    assert (small, large) == (100 * 6400, 10_000 * 6400)
    assert after - before < 10_000 * 2000


def test_workers_start_beside_openmp_threads(script):
    path, (*_, energies) = script
    waves = [load_waveform(path, 16000, start=index / 100, stop=index / 100 + 0.1) for index in range(8)]
    np.testing.assert_allclose(energies, [500 * (wave**2).sum() for wave in waves], rtol=1e-4)
