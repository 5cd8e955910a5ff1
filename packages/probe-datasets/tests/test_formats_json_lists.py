"""Lists of JSON files read in parts, against Python's own parser."""

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from probe_datasets.formats import json_lists
from probe_datasets.formats.files import DataError
from probe_datasets.formats.json_lists import read_json_lists

CONTENT = {
    "info": {"images": [1, 2]},
    "images": [{"id": i, "name": '\u00e9\u4e2d\\ "]},[{ ' * (i % 4)} for i in range(50)],
    "licenses": [[[]], None],
    "empty": [],
    "numbers": [1, -2.5e3, 12345678901234567890, True, None, "x", [7], {"a": []}],
}


def read(path: Path, text: str, keys: tuple[str, ...] = ("images", "empty", "numbers")) -> Any:
    path.write_text(text, encoding="utf-8")
    found: dict[str, list[Any]] = {}
    for key, element in read_json_lists(path, "a file", keys):
        found.setdefault(key, []).append(element)
    return found


@pytest.mark.parametrize("chunk", [1, 2, 7, 100, 1 << 18])
@pytest.mark.parametrize("indent", [None, 1])
def test_elements_are_those_of_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, indent: int | None
):
    monkeypatch.setattr(json_lists, "_CHUNK", chunk)
    wanted = {"images": CONTENT["images"], "numbers": CONTENT["numbers"]}
    path = tmp_path / "a.json"
    for text in (json.dumps(CONTENT, indent=indent), json.dumps(CONTENT, ensure_ascii=False)):
        assert read(path, text) == wanted
    assert read(path, "\ufeff \n{}\n ") == {}


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "3",
        " ",
        '{"images": 3}',
        '{"images": {"a": 1}}',
        '{"images": [1], "images": [2]}',
        '{"images": [1]} x',
        '{"images": [1,]}',
        '{"images": [,1]}',
        '{"images": [1 2]}',
        '{"images": [1], }',
        '{"images": [1]',
        '{"images": [1',
        '{"images" [1]}',
        "{3: [1]}",
        '{"info": "x}',
        '{"images": [' + "[" * 100_000,
        '{"images": [' + "9" * 5000 + "]}",
    ],
)
def test_what_is_no_such_object_is_refused(tmp_path: Path, text: str):
    with pytest.raises(DataError, match=r"a\.json: "):
        read(tmp_path / "a.json", text)


def test_damage_is_refused_or_gives_what_the_whole_parser_gives(tmp_path: Path):
    chance = random.Random(0)
    whole = json.dumps(CONTENT).encode()
    path = tmp_path / "a.json"
    for k in range(300):
        content = bytearray(whole)
        if k % 3 == 0:
            content = content[: chance.randrange(1, len(whole))]
        else:
            content[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        found: list[tuple[str, Any]] = []
        with contextlib.suppress(DataError):
            found = list(read_json_lists(path, "a file", ("images",)))
            assert found == [("images", x) for x in json.loads(bytes(content)).get("images", [])]
        if k % 3 == 0:
            assert not found
