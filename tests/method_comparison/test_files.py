"""Files of results."""

import json

import pytest
from files import write_json


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    write_json(path, {"a": 2})
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
