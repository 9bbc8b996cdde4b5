"""The page: what it says of each file, and the whole of it in a browser."""

import base64
import io
import os
import shutil
import socket
import subprocess
import sys
import time
import tracemalloc
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
from adapters import save_adapter
from compare_adapters import load_adapters
from demo_app import compare, load, main, make_adapters, picture
from demo_small import LABELS
from sounds import save_ast, save_wav2vec2, tone

from peft_audio.data import load_waveform


gradio = pytest.importorskip("gradio", reason="the page is made with gradio")

# A Chromium in the virtual environment, with the libraries and fonts that it needs beside it.
BROWSER = Path(sys.prefix) / "browser"
SCRIPT = Path(__file__).parents[2] / "examples" / "demo_app.py"
RATE = 16000


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Three adapters of one base: two with three labels each, and one with five."""
    folder = tmp_path_factory.mktemp("adapters")
    base = save_ast(folder / "ast")
    labels = {"pets": ["cat", "dog", "rat"], "engines": ["car", "ship", "plane"], "music": list("abcde")}
    return [save_adapter(folder / name, base, labels[name], seed=len(name)) for name in labels]


@pytest.fixture(scope="module")
def comparison(sources):
    return load_adapters(sources)


def audio(waveform, rate=RATE, kind="WAV", subtype=None):
    """The bytes of a file with this sound."""
    file = io.BytesIO()
    soundfile.write(file, waveform, rate, format=kind, subtype=subtype)
    return file.getvalue()


UNUSABLE = {
    "empty.wav": (b"", r"empty \(0 bytes\)"),
    "text.wav": (b"these are no samples", "unreadable .* convert it to WAV or FLAC"),
    "silent.wav": (audio(np.zeros(RATE)), "silent"),
    "short.wav": (audio(tone("low", 0.01)), r"too short \(0\.010 s, the model needs 0\.175 s\)"),
    "broken.flac": (audio(tone("low"), kind="FLAC")[:100], "unreadable"),
    "nan.wav": (audio(np.full(RATE, np.nan), subtype="FLOAT"), "has samples that are not finite numbers"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_the_page_says_why_a_file_cannot_be_used(comparison, tmp_path, name):
    content, reason = UNUSABLE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(gradio.Error, match=f"This sound cannot be used: .*{reason}"):
        compare(comparison, str(tmp_path / name), ["pets"])


def test_the_page_asks_for_what_is_missing(comparison):
    with pytest.raises(gradio.Error, match="no sound yet"):
        compare(comparison, None, ["pets"])
    with pytest.raises(gradio.Error, match="No adapter is chosen: tick one to 4"):
        compare(comparison, "clip.wav", [])
    with pytest.raises(gradio.Error, match="5 adapters are chosen: tick one to 4"):
        compare(comparison, "clip.wav", list("abcde"))


def test_the_picture_shows_what_the_chosen_adapter_attends_to(comparison, tmp_path):
    (tmp_path / "clip.wav").write_bytes(audio(tone("low", 0.4)))
    shown = {}
    for name in ("pets", "engines"):
        figure = picture(comparison, str(tmp_path / "clip.wav"), name)
        assert figure.get_suptitle() == f"{name}: attention of the last layer"
        shown[name] = figure.axes[0].images[1].get_array()
    assert not np.allclose(shown["pets"], shown["engines"])


def test_the_picture_says_where_a_model_does_not_give_its_attention(comparison, tmp_path, monkeypatch):
    (tmp_path / "clip.wav").write_bytes(audio(tone("low", 0.4)))
    monkeypatch.setattr("compare_adapters.attention_map", lambda *args, **options: None)
    figure = picture(comparison, str(tmp_path / "clip.wav"), "pets")
    assert figure.get_suptitle() == "pets: this model does not give its attention"
    assert len(figure.axes[0].images) == 1  # the spectrogram


def test_the_page_shows_how_far_the_model_hears(comparison, tmp_path):
    (tmp_path / "clip.wav").write_bytes(audio(tone("low", 2)))
    axes = picture(comparison, str(tmp_path / "clip.wav"), "pets").axes[0]
    assert axes.get_xlim() == pytest.approx((0, 2))
    # 46 frames of 10 ms; patches of 16 frames, 9 apart, reach 39 to 40 frames.
    assert axes.images[1].get_extent()[1] <= 0.46


@pytest.mark.parametrize("rate, channels, kind", [(8000, 1, "WAV"), (44100, 2, "FLAC"), (48000, 1, "OGG")])
def test_any_rate_and_any_number_of_channels_is_taken(comparison, tmp_path, rate, channels, kind):
    file = tmp_path / f"clip.{kind.lower()}"
    waveform = tone("low", rate=rate)
    file.write_bytes(audio(np.stack([waveform] * channels, axis=1), rate, kind))
    mono = load_waveform(file, RATE)
    assert compare(comparison, str(file), ["pets", "music"]) == comparison.predict(mono, RATE, ["pets", "music"])


def test_what_is_not_heard_of_a_long_sound_is_said(comparison, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(gradio, "Info", told.append)
    file = tmp_path / "clip.wav"
    for seconds in (0.4, 0.465, 0.6):  # the model hears 0.46 s; 5 ms more are no more than an encoder's padding
        file.write_bytes(audio(tone("low", seconds)))
        compare(comparison, str(file), ["pets"])
    assert told == ["The sound lasts 0.60 s. Not every adapter hears it to its end: pets its first 0.46 s."]


def test_a_file_of_hours_is_not_decoded_to_its_end(comparison, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(gradio, "Info", told.append)
    with soundfile.SoundFile(tmp_path / "clip.flac", "w", 48000, 2) as file:
        for _ in range(20):  # minutes
            file.write(np.tile(tone("low", 60, 48000)[:, None], 2))
    tracemalloc.start()
    compare(comparison, str(tmp_path / "clip.flac"), ["pets"])
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    assert told == ["The sound lasts more than 30 s. Not every adapter hears it to its end: pets its first 0.46 s."]


def test_adapters_of_two_bases_end_in_a_message(sources, tmp_path, monkeypatch, capsys):
    other = save_adapter(tmp_path / "speech", save_wav2vec2(tmp_path / "wav2vec2"), ["no", "yes"])
    monkeypatch.setattr(sys, "argv", ["demo_app.py", "--adapters", sources[0], other])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert "error: Adapters to compare must be of one base model" in capsys.readouterr().err


def test_without_gradio_it_says_what_to_install(sources, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["demo_app.py", "--adapters", *sources])
    with pytest.raises(SystemExit, match="pip install gradio"):
        main()


def test_it_makes_adapters_of_its_own(monkeypatch):
    monkeypatch.setattr(make_adapters, "__defaults__", (1, 2))  # epochs, clips of each class
    comparison = load(None)
    assert comparison.names == ["linear_probe", "embedding_prompt", "parallel_mlp", "ipet"]
    for found in comparison.predict(tone("low", 3), RATE, comparison.names, top_k=8).values():
        assert sorted(label for label, _ in found) == sorted(LABELS)


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium whose microphone hears a tone."""
    playwright = pytest.importorskip("playwright.sync_api", reason="a browser is driven with playwright")
    options = {}  # none: playwright's own browser
    if (BROWSER / "chromium").exists():
        environment = {"LD_LIBRARY_PATH": str(BROWSER / "al2023" / "lib"), "XDG_DATA_HOME": str(BROWSER)}
        options = {"executable_path": BROWSER / "chromium", "env": os.environ | environment}
    elif shutil.which("chromium"):
        options = {"executable_path": shutil.which("chromium")}
    heard = tmp_path_factory.mktemp("microphone") / "tone.wav"
    soundfile.write(heard, tone("middle", 5), RATE)
    microphone = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(
                args=[*microphone, f"--use-file-for-fake-audio-capture={heard}"], **options
            )
        except playwright.Error as error:
            if options:
                raise
            pytest.skip(f"no browser is installed ({str(error).splitlines()[0]})")
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(sources, browser, tmp_path_factory):
    """Where the page is served, by the script in a process of its own."""
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = os.pathsep.join([str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GRADIO_TEMP_DIR": str(folder / "sounds")}
    command = [sys.executable, str(SCRIPT), "--port", str(port), "--share", "False", "--adapters", *sources]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until_served(server, f"http://127.0.0.1:{port}", folder / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_until_served(server, address, log):
    deadline = time.monotonic() + 300  # the first import of a fresh installation compiles everything
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=10).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no page at {address}: {log.read_text()}")


@pytest.fixture
def page(browser, address):
    page = browser.new_page()
    page.goto(address)
    page.get_by_role("button", name="Predict").wait_for()
    yield page
    page.close()


def drop(page, name, content, kind="audio/wav"):
    """Lets go of a file over the upload field, as a mouse does."""
    files = page.evaluate_handle(
        """([name, content, type]) => {
            const bytes = Uint8Array.from(atob(content), character => character.charCodeAt(0));
            const files = new DataTransfer();
            files.items.add(new File([bytes], name, {type}));
            return files;
        }""",
        [name, base64.b64encode(content).decode(), kind],
    )
    page.get_by_label("Drop an audio file here").dispatch_event("drop", {"dataTransfer": files})


def wait_for_sound(page):
    page.get_by_test_id("download-link").wait_for()


def predictions(page):
    """By adapter, the labels and probabilities that the page shows."""
    page.get_by_role("meter").first.wait_for()
    blocks = page.get_by_test_id("label").evaluate_all(
        """blocks => blocks.map(block => [
            block.querySelector('[data-testid=block-label]').textContent.trim(),
            [...block.querySelectorAll('meter')].map(meter => [meter.getAttribute('aria-label'), meter.value]),
        ])"""
    )
    return dict(blocks)


def assert_shown(page, expected):
    shown = predictions(page)
    assert list(shown) == list(expected)
    for name, found in expected.items():
        assert [label for label, _ in shown[name]] == [label for label, _ in found]
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in found], abs=1e-4)


@pytest.mark.parametrize("chosen", [["pets", "engines", "music"], ["engines", "music"]])
def test_a_dropped_sound_gets_the_predictions_of_the_adapters_chosen(page, comparison, chosen):
    waveform = tone("high", seed=len(chosen))
    drop(page, "clip.wav", audio(waveform))
    wait_for_sound(page)
    for name in comparison.names:
        page.get_by_role("checkbox", name=name).set_checked(name in chosen)
    page.get_by_role("button", name="Predict").click()
    decoded, _ = soundfile.read(io.BytesIO(audio(waveform)))
    assert_shown(page, comparison.predict(decoded, RATE, chosen))


def test_the_attention_of_another_adapter_is_shown_when_it_is_chosen(page):
    drop(page, "clip.wav", audio(tone("high")))
    wait_for_sound(page)
    page.get_by_role("checkbox", name="engines").set_checked(False)
    page.get_by_role("button", name="Predict").click()
    pictures = page.get_by_test_id("matplotlib").locator("img")
    pictures.wait_for()
    assert page.get_by_role("radio").count() == 2  # those that are ticked
    first = pictures.get_attribute("src")
    page.get_by_role("radio", name="music").check()
    page.wait_for_function("first => document.querySelector('[data-testid=matplotlib] img').src !== first", arg=first)


@pytest.mark.parametrize("name", ["silent.wav", "text.wav"])
def test_a_file_that_cannot_be_used_gets_a_message(page, name):
    content, reason = UNUSABLE[name]
    drop(page, name, content)
    page.get_by_role("button", name="Clear").wait_for()
    page.get_by_role("button", name="Predict").click()
    message = page.get_by_test_id("toast-body").filter(has_text="This sound cannot be used")
    message.wait_for()
    assert reason.split()[0] in message.inner_text()
    assert page.get_by_role("meter").count() == 0


def test_a_new_sound_takes_the_predictions_of_the_last_one_off_the_page(page):
    drop(page, "clip.wav", audio(tone("low")))
    wait_for_sound(page)
    page.get_by_role("button", name="Predict").click()
    assert predictions(page)
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("meter").first.wait_for(state="detached")
    assert page.get_by_test_id("label").count() == 0
    assert page.get_by_test_id("matplotlib").count() == page.get_by_role("radio").count() == 0


def test_a_recording_gets_the_predictions_of_what_the_microphone_heard(page, comparison, tmp_path):
    page.get_by_label("Record audio").click()
    page.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Stop", exact=True).click()
    wait_for_sound(page)
    page.get_by_role("button", name="Predict").click()
    recorded = page.request.get(page.get_by_test_id("download-link").get_attribute("href")).body()
    (tmp_path / "recorded.wav").write_bytes(recorded)
    waveform = load_waveform(tmp_path / "recorded.wav", RATE)
    assert_shown(page, comparison.predict(waveform, RATE, comparison.names))
    spectrum = np.abs(np.fft.rfft(waveform))
    assert spectrum.argmax() * RATE / len(waveform) == pytest.approx(1000, abs=20)  # the tone it was to hear
