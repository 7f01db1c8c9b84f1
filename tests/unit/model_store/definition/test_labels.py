"""Label files of one's own: what is read, and the one line that each wrong file ends in."""

import pytest

from model_store.labels import LabelSet
from model_store.labels.own import MAX_LABELS, LabelError, read_file


def written(tmp_path, content, name="labels.txt"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    ["cat\ndog\n", "cat\r\ndog\r\n", "\ufeffcat\ndog", "cat\ndog\n\n\n", " cat \ndog\t\n"],
    ids=["plain", "CRLF", "BOM", "empty lines at the end", "blanks around"],
)
def test_text(tmp_path, content):
    assert read_file(written(tmp_path, content)) == LabelSet("labels.txt", own=("cat", "dog"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('["cat", "dog"]', LabelSet("l.json", own=("cat", "dog"))),
        ('{"1": "dog", "0": "cat"}', LabelSet("l.json", own=("cat", "dog"))),
        (
            '[{"name": "cat", "color": "#ff0000"}, {"name": "dog", "color": "#00FF00"}]',
            LabelSet("l.json", own=("cat", "dog"), colours=("#ff0000", "#00FF00")),
        ),
        ('[{"name": "cat"}, {"name": "dog"}]', LabelSet("l.json", own=("cat", "dog"))),
    ],
)
def test_json(tmp_path, content, expected):
    assert read_file(written(tmp_path, content, "l.json")) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no labels"),
        ("\n\n", "no labels"),
        ("cat\n\ndog", "label 2 is empty"),
        ("cat\ndog\ncat", "labels 1 and 3 are both 'cat'"),
        ("c" * 201, "201 characters"),
        ("cat\x00", "control character"),
        (b"\xff\xfe\x00", "not UTF-8"),
        ("\n".join(map(str, range(MAX_LABELS + 1))), "at most 100,000"),
    ],
)
def test_wrong_text_ends_in_one_line(tmp_path, content, said):
    with pytest.raises(LabelError) as caught:
        read_file(written(tmp_path, content))
    assert said in str(caught.value)
    assert "labels.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1, 2]", "neither a list of names"),
        ('{"a": "cat"}', "class numbers"),
        ('{"0": "cat", "2": "dog"}', "0 to 1"),
        ('{"0": 5}', "needs a name"),
        ('[{"name": "cat", "color": "red"}]', "#rrggbb"),
        ('[{"name": "cat", "color": "#ff0000"}, {"name": "dog"}]', "1 of 2"),
        ("[", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_wrong_json_ends_in_one_line(tmp_path, content, said):
    with pytest.raises(LabelError) as caught:
        read_file(written(tmp_path, content, "l.json"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LabelError, match=r"absent\.txt: No such file"):
        read_file(tmp_path / "absent.txt")


def test_as_many_labels_as_the_bound_are_read(tmp_path):
    assert len(read_file(written(tmp_path, "\n".join(map(str, range(MAX_LABELS))))).own) == MAX_LABELS
