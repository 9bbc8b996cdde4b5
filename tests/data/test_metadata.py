"""What a metadata.csv may look like: what spreadsheets and people write is read right, or refused by its line."""

import csv
import io

import pytest
from hypotheses import examples, hypothesis, some

from peft_audio.data import DataError, load_waveform, read_audiofolder, read_rows


def table(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metadata.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "file_name,label\na.wav,x\nb.wav,y\n",
        "\ufefffile_name,label\r\na.wav,x\r\nb.wav,y\r\n",
        "\n \nfile_name,label\n\na.wav,x\n   \n\t\nb.wav,y\n\n\n",
        "file_name,label,,\na.wav,x,,\n,,,\nb.wav,y,,\n,,,\n",
        'label , "file_name"\n"x" ,a.wav\ny,  b.wav  '.replace('"x" ', "x "),
        "file_name,label\nc/../a.wav,x\n./b.wav,y\n",
    ],
)
def test_what_spreadsheets_write_is_read(tmp_path, text):
    clips = read_audiofolder(table(tmp_path, text)).clips
    assert [(clip.name, clip.source, clip.labels) for clip in clips] == [
        ("a.wav", tmp_path / "a.wav", ("x",)),
        ("b.wav", tmp_path / "b.wav", ("y",)),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file_name,label,label\na.wav,x,y\n", ["line 1", "'label' is there twice", "Rename or remove"]),
        ("file_name,label, file_name\na.wav,x,y\n", ["line 1", "'file_name' is there twice"]),
        ("file_name,label\na.wav,x\nx/../a.wav,y\n", ["line 3", "'x/../a.wav' is listed already, in line 2"]),
        ("file_name,label\na.wav,x\n./a.wav,y\n", ["line 3", "listed already, in line 2"]),
        ('file_name,label\n"a.wav,x\nb.wav,y\n', ["line 2", "Close every quote"]),
        ('file_name,label\na.wav,x\n"b"c.wav,y\n', ["line 3", "Close every quote"]),
        ("file_name,label\na.wav,x\nb\0.wav,y\n", ["line 3", "code 0"]),
        ("\n\nfile_name,label,label\na.wav,x\n", ["line 3", "'label' is there twice"]),
        (" \n,,\n", ["columns are none", "The first line must name the columns"]),
        ("a.wav,x\nb.wav,y\n", ["'file_name', 'label' is missing", "'a.wav', 'x'"]),
        ("file_name,label\n,x\n", ["line 2", "'file_name' is empty"]),
        ("file_name,label\na.wav,x\n".encode("utf-16"), ["UTF-8"]),
    ],
)
def test_what_cannot_be_read_right_is_refused_by_its_line(tmp_path, text, expected):
    with pytest.raises(DataError) as error:
        read_audiofolder(table(tmp_path, text))
    assert all(part in str(error.value) for part in [str(tmp_path / "metadata.csv"), *expected]), str(error.value)
    assert "\n" not in str(error.value)


def test_a_clip_of_another_folder_has_one_name(tmp_path):
    text = f"file_name,label\n../others/a.wav,x\n{tmp_path}/others/b.wav,y\n"
    assert [clip.source for clip in read_audiofolder(table(tmp_path / "own", text)).clips] == [
        tmp_path / "others" / "a.wav",
        tmp_path / "others" / "b.wav",
    ]
    with pytest.raises(DataError, match="line 4: .* is listed already, in line 2"):
        read_audiofolder(table(tmp_path / "own", text + f"{tmp_path}/others/a.wav,x\n"))


def test_no_clip_is_in_two_splits(tmp_path):
    table(tmp_path / "train", "file_name,label\na.wav,x\n../test/b.wav,y\n")
    table(tmp_path / "test", "file_name,label\nb.wav,y\n")
    with pytest.raises(
        DataError, match=r"train.metadata.csv line 3: '../test/b.wav' .*test.metadata.csv line 2. Remove"
    ):
        read_audiofolder(tmp_path)


def test_names_that_no_file_has_are_bad_files(tmp_path):
    (clip,) = read_audiofolder(table(tmp_path, f"file_name,label\n{'a' * 300}.wav,x\n")).clips
    with pytest.raises(ValueError, match=r"^cannot be read \(File name too long\)$|^no such file$"):
        load_waveform(clip.source, 16000)


@pytest.mark.parametrize("problem", ["folder", "absent"])
def test_a_list_that_cannot_be_opened_is_named(tmp_path, problem):
    path = tmp_path / "list.csv"
    if problem == "folder":
        path.mkdir()
    with pytest.raises(DataError, match="list.csv: cannot be read"):
        read_rows(path)


VALUES = some.text(some.characters(blacklist_categories=["Cs", "Cc"]), max_size=6).map(str.strip)


@examples(200)
@hypothesis.given(rows=some.lists(some.lists(VALUES, min_size=2, max_size=2), max_size=5))
def test_rows_are_what_was_written(tmp_path_factory, rows):
    file = io.StringIO()
    csv.writer(file).writerows([["one", "two"], *rows])
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    path.write_text(file.getvalue(), encoding="utf-8", newline="")
    columns, read = read_rows(path)
    assert columns == ["one", "two"]
    assert [list(row.values()) for _, row in read] == [row for row in rows if any(row)]


@examples(300)
@hypothesis.given(content=some.one_of(some.text(max_size=40), some.binary(max_size=40)))
def test_any_content_is_read_or_refused_in_one_line(tmp_path_factory, content):
    folder = table(
        tmp_path_factory.mktemp("any"), content if isinstance(content, bytes) else content.encode("utf-8", "replace")
    )
    for start in (b"", b"file_name,label\n"):
        path = folder / "metadata.csv"
        path.write_bytes(start + path.read_bytes())
        try:
            clips = read_audiofolder(folder).clips
            assert clips and len({clip.name for clip in clips}) == len(clips)
        except DataError as error:
            assert len(str(error).splitlines()) == 1
