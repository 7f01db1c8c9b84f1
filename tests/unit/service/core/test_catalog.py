from pathlib import Path

import pytest
from fakes import toy_card

from handlers.contract.card import Task, WeightsState
from service.core.catalog import Catalog, CatalogError, read
from service.core.errors import ModelNotFound, NoDefaultModel, TaskMismatch


def test_the_error_for_an_unknown_model_names_similar_models() -> None:
    catalog = Catalog([toy_card(name="mobilevit_xs_classify"), toy_card(name="emo_1m_classify")])
    with pytest.raises(ModelNotFound, match="mobilevit_xs_classify") as raised:
        catalog.for_task("mobilevit_xss_classify", Task.CLASSIFY)
    assert raised.value.metadata["nearest"].split(",")[0] == "mobilevit_xs_classify"


def test_the_error_for_a_model_of_another_task_names_its_task() -> None:
    catalog = Catalog([toy_card(Task.DETECT)])
    with pytest.raises(TaskMismatch) as raised:
        catalog.for_task("toy_detect", Task.CLASSIFY)
    assert raised.value.metadata == {"model": "toy_detect", "model_task": "detect", "called": "classify"}


def test_the_default_model_has_the_most_trusted_weights() -> None:
    cards = [
        toy_card(name="a", weights=WeightsState.RANDOM),
        toy_card(name="b", weights=WeightsState.OFFICIAL),
        toy_card(name="c", weights=WeightsState.DEMO),
    ]
    assert Catalog(cards).for_task("", Task.CLASSIFY).name == "b"
    assert Catalog(cards, default_models=["c"]).for_task("", Task.CLASSIFY).name == "c"


def test_a_task_without_models_has_no_default() -> None:
    with pytest.raises(NoDefaultModel):
        Catalog([toy_card(Task.DETECT)]).for_task("", Task.SEGMENT)


@pytest.mark.parametrize("defaults", [["missing"], ["a", "b"]])
def test_invalid_default_models_are_refused(defaults: list[str]) -> None:
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


def test_errors_about_the_folder_say_what_to_do(tmp_path: Path) -> None:
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


def test_a_limited_catalog_names_no_other_model() -> None:
    cards = [toy_card(name="a"), toy_card(name="b"), toy_card(Task.DETECT, name="c")]
    limited = Catalog(cards).limited_to({"b", "c", "absent"})
    assert [card.name for card in limited.cards] == ["b", "c"]
    assert limited.for_task("", Task.DETECT).name == "c"
    with pytest.raises(NoDefaultModel):
        limited.for_task("", Task.CLASSIFY)  # the default is a
    with pytest.raises(ModelNotFound) as raised:
        limited.get("absent")
    assert "served: b, c" in str(raised.value)
