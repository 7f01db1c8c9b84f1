from pathlib import Path

import pytest
from fakes import toy_card

from model_store.card import Task, WeightsState
from service.catalog import Catalog, CatalogError, read
from service.errors import ModelNotFound, NoDefaultModel, TaskMismatch


def test_an_unknown_model_is_answered_with_the_nearest_names() -> None:
    catalog = Catalog([toy_card(name="mobilevit_xs_classify"), toy_card(name="emo_1m_classify")])
    with pytest.raises(ModelNotFound, match="mobilevit_xs_classify") as raised:
        catalog.for_task("mobilevit_xss_classify", Task.CLASSIFY)
    assert raised.value.metadata["nearest"].split(",")[0] == "mobilevit_xs_classify"


def test_a_model_of_another_task_is_named_with_its_task() -> None:
    catalog = Catalog([toy_card(Task.DETECT)])
    with pytest.raises(TaskMismatch) as raised:
        catalog.for_task("toy_detect", Task.CLASSIFY)
    assert raised.value.metadata == {"model": "toy_detect", "model_task": "detect", "called": "classify"}


def test_trusted_weights_answer_by_default() -> None:
    cards = [
        toy_card(name="a", weights=WeightsState.RANDOM),
        toy_card(name="b", weights=WeightsState.OFFICIAL),
        toy_card(name="c", weights=WeightsState.DEMO),
    ]
    assert Catalog(cards).for_task("", Task.CLASSIFY).name == "b"
    assert Catalog(cards, default_models=["c"]).for_task("", Task.CLASSIFY).name == "c"


def test_no_default_for_a_task_nobody_serves() -> None:
    with pytest.raises(NoDefaultModel):
        Catalog([toy_card(Task.DETECT)]).for_task("", Task.SEGMENT)


@pytest.mark.parametrize("defaults", [["missing"], ["a", "b"]])
def test_defaults_that_cannot_be_are_refused(defaults: list[str]) -> None:
    with pytest.raises(CatalogError):
        Catalog([toy_card(name="a"), toy_card(name="b")], default_models=defaults)


def write(folder: Path, name: str, text: str | None = None) -> None:
    (folder / f"{name}.mar").write_bytes(b"")
    (folder / f"{name}.card.json").write_text(text if text is not None else toy_card(name=name).to_json())


def test_cards_are_read_from_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b")
    assert [card.name for card in read(tmp_path).cards] == ["a", "b"]
    assert [card.name for card in read(tmp_path, models=["b", "b"]).cards] == ["b"]


def test_many_archives_are_not_served_by_accident(tmp_path: Path) -> None:
    for index in range(7):
        write(tmp_path, f"m{index}")
    with pytest.raises(CatalogError, match="name those to serve"):
        read(tmp_path)
    assert len(read(tmp_path, models=[f"m{index}" for index in range(7)]).cards) == 7


def test_every_way_the_folder_can_be_wrong_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="models build"):
        read(tmp_path)
    write(tmp_path, "a", text="{}")
    with pytest.raises(CatalogError, match="models build a"):
        read(tmp_path)
    with pytest.raises(CatalogError, match="models build b"):
        read(tmp_path, models=["b"])
    (tmp_path / "a.mar").unlink()
    with pytest.raises(CatalogError, match=r"a\.mar"):
        read(tmp_path)
