"""Labels of parts of clips: what a metadata.csv may say of them, and which frames get them."""

import re

import numpy as np
import pytest
import soundfile

from peft_audio.data import (
    ClipTable,
    DataError,
    Event,
    FrameGrid,
    SequenceCollator,
    choose_splits,
    prepare_frames,
    read_audiofolder,
)


HEADER = "file_name,label,start,stop\n"
GRID = FrameGrid(count=lambda length: (length - 3) // 2 + 1, main_input="input_values", window=0.3, hop=0.2)


class Extractor:
    """Gives waveforms as they are, at 10 samples a second."""

    sampling_rate, padding_value = 10, 0.0

    def __call__(self, waveform, **kwargs):
        return {"input_values": np.asarray(waveform)[None]}


def table(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.csv").write_text(text)
    return folder


def events_of(clip):
    return [(event.label, event.start, event.stop) for event in clip.events]


def test_each_clip_has_the_events_of_its_lines(tmp_path):
    text = "file_name,label,start,stop,fold\na.wav,x,0,1.5,1\nb.wav,,,,1\nx/../a.wav,y,0.25,9e-1,1\na.wav,x,2,3,1\nc.wav,y,1,2,2\n"
    read = read_audiofolder(table(tmp_path, text), events=True)
    a, b, c = read.clips
    assert read.has_events and read.multi_label
    assert events_of(a) == [("x", 0, 1.5), ("y", 0.25, 0.9), ("x", 2, 3)] and a.labels == ("x", "y")
    assert (b.events, b.labels, b.fold) == ((), (), "1")
    assert (c.name, c.fold) == ("c.wav", "2")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a.wav,x,2,1", "line 2: stop must lie behind start, got start 2 and stop 1"),
        ("a.wav,x,1,1", "line 2: stop must lie behind start"),
        ("a.wav,x,nan,1", "line 2: column 'start' must be a number of seconds from 0 up, got 'nan'"),
        ("a.wav,x,0,inf", "line 2: column 'stop' must be a number of seconds from 0 up, got 'inf'"),
        ("a.wav,x,-1,1", "line 2: column 'start' must be a number of seconds from 0 up, got '-1'"),
        ("a.wav,x,one,1", "line 2: column 'start' must be .* got 'one'"),
        ("a.wav,x,,1", "line 2: column 'start' is empty. Fill it in, or leave label, start, stop all empty"),
        ("a.wav,,0,1", "line 2: column 'label' is empty"),
        (",x,0,1", "line 2: column 'file_name' is empty"),
        ("a.wav,x,0,1\na.wav,,,", "line 3: says that 'a.wav' has no event, but it has 2 lines"),
        ("a.wav,,,\na.wav,,,", "line 2: says that 'a.wav' has no event, but it has 2 lines"),
    ],
)
def test_what_cannot_be_right_is_refused_by_its_line(tmp_path, line, expected):
    with pytest.raises(DataError, match=f"^{re.escape(str(tmp_path))}/metadata.csv {expected}") as error:
        read_audiofolder(table(tmp_path, f"{HEADER}{line}\n"), events=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file_name,label\na.wav,x\n", "column 'start', 'stop' is missing.*file_name, label, start and stop"),
        (
            "file_name,label,start,stop,split\na.wav,x,0,1,train\na.wav,x,1,2,test\n",
            "line 3: column 'split' is 'test', but",
        ),
        (HEADER, "lists no clips"),
    ],
)
def test_tables_that_are_of_no_use(tmp_path, text, expected):
    with pytest.raises(DataError, match=expected):
        read_audiofolder(table(tmp_path, text), events=True)
    (tmp_path / "metadata.csv").unlink()
    with pytest.raises(
        DataError, match="holds no metadata.csv, which must name the columns file_name, label, start and stop"
    ):
        read_audiofolder(tmp_path, events=True)


def test_no_clip_is_in_two_splits(tmp_path):
    table(tmp_path / "train", f"{HEADER}a.wav,x,0,1\n../test/b.wav,y,0,1\n")
    table(tmp_path / "test", f"{HEADER}b.wav,y,0,1\n")
    with pytest.raises(DataError, match=r"train.metadata.csv line 3: '../test/b.wav' |test.metadata.csv line 2"):
        read_audiofolder(tmp_path, events=True)


# ---- Frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "stop", "frames"),
    [
        (0.0, 5.0, [0, 1, 2, 3, 4]),  # centers: 0.15, 0.35, 0.55, 0.75, 0.95
        (0.35, 0.55, [1]),  # from its start on, to its end
        (0.34, 0.56, [1, 2]),
        (0.36, 0.44, [1]),  # between two centers: the frame nearest to its middle
        (0.46, 0.54, [2]),
        (0.0, 0.02, [0]),
        (1.05, 1.09, [4]),  # still seen by the last frame
        (1.2, 1.3, []),  # seen by none, as where a clip is cut
        (5.0, 9.0, []),
    ],
)
def test_frames_whose_center_lies_in_an_event_have_its_label(start, stop, frames):
    targets = GRID.targets([Event("b", start, stop)], ["a", "b"], 5)
    assert targets.shape == (5, 2) and not targets[:, 0].any()
    assert targets[:, 1].nonzero()[0].tolist() == frames


def test_events_may_overlap():
    events = [Event("a", 0.1, 0.6), Event("a", 0.5, 0.8), Event("b", 0.5, 1.0)]
    assert GRID.targets(events, ["a", "b"], 5).T.tolist() == [[1, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert GRID.targets([], ["a", "b"], 0).shape == (0, 2)


def write(folder, *rows):
    lines = ["file_name,label,start,stop,split"]
    for name, seconds, event, split in rows:
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, np.random.default_rng(0).normal(0, 0.1, round(seconds * 1000)), 1000)
        lines.append(f"{name},{event},{split}")
    return table(folder, "\n".join(lines))


def prepare(folder, **options):
    return prepare_frames(read_audiofolder(folder, events=True), Extractor(), GRID, **options)


def test_batches_have_targets_of_all_frames_and_none_in_padding(tmp_path):
    rows = [("a.wav", 2, "x,0,0.3", "train"), ("b.wav", 1, "y,0,1", "train"), ("c.wav", 1, ",,", "train")]
    data = prepare(write(tmp_path, *rows, ("d.wav", 1, "x,0,1", "test")))
    assert data.labels == ["x", "y"] and len(data.train) == 3 and data.multi_label
    items = [data.train[index] for index in range(3)]
    assert [item["labels"].shape for item in items] == [(9, 2), (4, 2), (4, 2)]
    collator = SequenceCollator(Extractor())
    collator._joined = lambda inputs: {"input_values": len(inputs)}
    labels = collator(items)["labels"]
    assert labels.shape == (3, 9, 2)
    assert labels[0, :, 0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert labels[1, :, 1].tolist() == [1] * 4 + [-100] * 5
    assert labels[2, :, 0].tolist() == [0] * 4 + [-100] * 5


def test_masked_ends_of_a_clip_have_no_targets():
    inputs = {"input_values": np.zeros(11), "attention_mask": np.array([1] * 7 + [0] * 4)}
    assert GRID.counts(inputs) == (5, 3)


@pytest.mark.parametrize(
    ("rows", "options", "expected"),
    [
        (
            [("a.wav", 1, "x,0,1.1", "train"), ("b.wav", 1, "x,0,1", "test")],
            {},
            "line 2: the event ends at 1.1 s, but 'a.wav'",
        ),
        ([("a.wav", 1, "x,0,1", "train"), ("b.wav", 1, ",,", "test")], {}, "no test clip has an event"),
        ([("a.wav", 1, ",,", "train"), ("b.wav", 1, ",,", "test")], {}, "no training clip has an event"),
        ([("a.wav", 1, "x,0,1", "train"), ("b.wav", 1, "y,0,1", "test")], {}, "label 'y' appears in the test clips"),
        (
            [("a.wav", 2, "x,1,2", "train"), ("b.wav", 1, "x,0,1", "test")],
            {"max_seconds": 0.8},
            "label 'x' is in no frame of the training clips",
        ),
        (
            [("a.wav", 1, "x,0,1", "train"), ("b.wav", 2, "x,1.5,2", "test")],
            {"max_seconds": 0.8},
            "no frame of the test clips has a label",
        ),
    ],
)
def test_events_that_cannot_be_learned_or_tested(rows, options, expected, tmp_path):
    with pytest.raises(DataError, match=expected):
        prepare(write(tmp_path, *rows), **options)


def test_annotations_may_be_rounded(tmp_path):
    folder = write(tmp_path, ("a.wav", 1.196, "x,0,1.2", "train"), ("b.wav", 1, "x,0,1", "test"))
    assert prepare(folder).train[0]["labels"].shape == (5, 1)


def test_one_label_is_enough_and_a_random_split_keeps_events_on_both_sides(tmp_path):
    lines = "".join(f"{index}.wav,{',,' if index % 5 == 4 else 'x,0,1'}\n" for index in range(20))
    splits = choose_splits(read_audiofolder(table(tmp_path, HEADER + lines), events=True))
    assert splits.labels == ["x"] and len(splits.test) == 4 and any(clip.events for clip in splits.test)


def test_labels_of_whole_clips_are_no_events():
    with pytest.raises(DataError, match=r"Read it with read_audiofolder\(folder, events=True\)"):
        prepare_frames(ClipTable([], "data"), Extractor(), GRID)
