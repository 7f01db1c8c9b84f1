"""The roll-out file: what is in it, how it is changed, and what a server starts with."""

from pathlib import Path

import pytest
from fakes import local_settings, toy_card

from handlers.contract.card import Card, Task
from service.core.catalog import CatalogError, archive_of, find
from service.serving import rollout_spec
from service.serving.rollout_spec import Entry, RolloutError


def put(folder: Path, card: Card, stem: str) -> None:
    (folder / f"{stem}.card.json").write_text(card.to_json())
    (folder / f"{stem}.mar").write_bytes(b"archive")


def version(number: str, **changes: object) -> Card:
    return toy_card().model_copy(update={"version": number, **changes})


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    put(tmp_path, toy_card(), "toy_classify")
    put(tmp_path, version("1.1"), "toy_classify@1.1")
    return tmp_path


def test_without_a_file_there_is_no_roll_out(tmp_path: Path) -> None:
    assert rollout_spec.read(tmp_path / "rollout.json") == {}


def test_an_edit_is_read_again_and_leaves_nothing_else_behind(tmp_path: Path) -> None:
    path = tmp_path / "rollout.json"
    entry = Entry(stable="1.0", candidate="1.1", weight=0.25)
    rollout_spec.edit(path, lambda entries: entries.update(toy=entry))
    rollout_spec.edit(path, lambda entries: entries.update(other=Entry(stable="2")))
    assert rollout_spec.read(path) == {"toy": entry, "other": Entry(stable="2")}
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_edit_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rollout.json"
    path.write_text("{broken")
    with pytest.raises(RolloutError, match="not right"):
        rollout_spec.edit(path, lambda entries: entries.clear())
    assert path.read_text() == "{broken"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "should be an object"),
        ('{"toy": {"stable": "one"}}', "toy.stable"),
        ('{"toy": {"stable": "1.0", "wieght": 0.5}}', "toy.wieght"),
        ('{"toy": {"stable": "1.0", "candidate": "1.0"}}', "same version"),
        ('{"toy": {"stable": "1.0", "weight": 0.5}}', "belong to a candidate"),
        ('{"toy": {"stable": "1.0", "candidate": "1.1", "weight": 1.5}}', "toy.weight"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(RolloutError, match=message):
        rollout_spec.parse(content.encode(), tmp_path)


def test_a_server_starts_with_the_stable_versions_of_the_file(archives: Path) -> None:
    settings = local_settings(archives=archives)
    assert [card.version for card in rollout_spec.served(settings).cards] == ["1.0"]
    rollout_spec.edit(archives / "rollout.json", lambda entries: entries.update(toy_classify=Entry(stable="1.1")))
    (card,) = rollout_spec.served(settings).cards
    assert (card.version, archive_of(archives, card).name) == ("1.1", "toy_classify@1.1.mar")
    for suffix in (".mar", ".card.json"):  # it needs no other
        (archives / f"toy_classify{suffix}").unlink()
    assert [card.version for card in rollout_spec.served(settings).cards] == ["1.1"]


def test_a_version_is_found_under_either_name_and_must_be_what_it_is_called(archives: Path) -> None:
    assert find(archives, "toy_classify", "1.0").version == "1.0"
    assert find(archives, "toy_classify", "1.1").version == "1.1"
    with pytest.raises(CatalogError, match=r"no archive of version 1\.2"):
        find(archives, "toy_classify", "1.2")
    put(archives, version("1.3"), "toy_classify@1.2")
    with pytest.raises(CatalogError, match=r"is of version 1\.3"):
        find(archives, "toy_classify", "1.2")


def test_versions_must_answer_the_same_question() -> None:
    rollout_spec.require_comparable(toy_card(), version("1.1"))
    with pytest.raises(RolloutError, match="other labels"):
        rollout_spec.require_comparable(toy_card(), version("1.1", labels=("cat", "dog")))
    with pytest.raises(RolloutError, match="answers detect"):
        rollout_spec.require_comparable(toy_card(), toy_card(Task.DETECT).model_copy(update={"version": "1.1"}))
