"""Definition files: what they mean, what they leave out, and the one line that each wrong file ends in."""

import tomllib

import pytest

from handlers.contract.card import InputSize, Preprocess
from model_store import zoo
from model_store.definition.errors import DefinitionError
from model_store.definition.read import parse, read
from model_store.definition.resolve import resolve
from model_store.definition.template import template
from model_store.weights import layouts

BASE = "mobilevit_xxs_classify"


def resolved(folder, text, layout=None):
    content = {"name": "pets", "base": BASE} | tomllib.loads(text)
    return resolve(parse(content, where="pets.toml", folder=folder), layout and layouts.get(layout))


def test_what_is_left_out_comes_from_the_base(tmp_path):
    found = resolved(tmp_path, "")
    base = zoo.get(BASE)
    assert found.entry.name == "pets"
    assert (found.entry.input, found.entry.preprocess, found.entry.normalize) == (
        base.input,
        base.preprocess,
        base.normalize,
    )
    assert found.entry.labels.names == base.labels.names
    assert found.entry.published == {}  # the score of the base is not that of other weights


def test_what_is_left_out_is_told(tmp_path):
    found = resolved(tmp_path, '[preprocess]\nmean = [0.5, 0.5, 0.5]\nresize = "squash"')
    assert "[preprocess] mean" not in found.assumed
    assert found.assumed["[preprocess] std"] == "[1.0, 1.0, 1.0]"
    assert found.assumed["[preprocess] channels"] == "BGR"
    assert found.assumed["[input]"] == "width = 256, height = 256"


def test_everything_can_be_said(tmp_path):
    (tmp_path / "bottles.txt").write_text("red\ngreen\n")
    found = resolved(
        tmp_path,
        """
        labels = "bottles.txt"
        version = "3"
        [input]
        width = 256
        height = 192
        [preprocess]
        resize = "squash"
        interpolation = "bicubic"
        antialias = true
        channels = "RGB"
        mean = [0.1, 0.2, 0.3]
        std = [0.4, 0.5, 0.6]
        [head]
        output_stride = 16
        """,
    ).entry
    assert found.labels.names == ("red", "green")
    assert found.classes == 2
    assert found.input == InputSize(width=256, height=192)
    assert found.preprocess == Preprocess(mode="squash", interpolation="bicubic", antialias=True)
    assert found.normalize.channel_order == "RGB"
    assert (found.normalize.mean, found.normalize.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert found.backbone.output_stride == 16


def test_the_side_before_the_crop_follows_the_input(tmp_path):
    side = resolved(tmp_path, "[input]\nwidth = 128\nheight = 128").entry.preprocess.shorter_side_px
    assert side == 144  # as 288 is to 256


def test_pictures_can_be_laid_on_a_colour_and_decoded_faster(tmp_path):
    found = resolved(tmp_path, '[preprocess]\nalpha = "white"\nreduced_decoding = true').entry.preprocess
    assert (found.alpha, found.reduced_decoding) == ("white", True)
    base = resolved(tmp_path, "").entry.preprocess
    assert (base.alpha, base.reduced_decoding) == ("drop", False)


def test_an_input_that_is_not_square_can_be_covered(tmp_path):
    text = '[input]\nwidth = 256\nheight = 192\n[preprocess]\nresize = "cover"\n'
    found = resolved(tmp_path, text + "crop_share = 0.875").entry.preprocess
    assert (found.mode, found.crop_share, found.shorter_side_px) == ("cover", 0.875, None)
    assert resolved(tmp_path, text).entry.preprocess.crop_share == 1.0
    assert resolved(tmp_path, text).assumed["[preprocess] crop_share"] == "1.0"


def test_a_crop_that_leaves_black_bars_is_said(tmp_path):
    text = "[input]\nwidth = 256\nheight = 192"
    assert "216 (some pictures get black bars" in resolved(tmp_path, text).assumed["[preprocess] shorter_side_px"]
    assert resolved(tmp_path, "").assumed["[preprocess] shorter_side_px"] == "288"


def test_the_layout_gives_what_the_definition_leaves_out(tmp_path):
    assert resolved(tmp_path, "", "timm").entry.preprocess == layouts.get("timm").preprocess
    stated = resolved(tmp_path, '[preprocess]\nresize = "squash"\nchannels = "BGR"', "transformers").entry
    assert stated.preprocess.mode == "squash"
    assert stated.normalize.channel_order == "BGR"


def test_labels_of_the_project_are_known_by_name(tmp_path):
    assert len(resolved(tmp_path, 'labels = "coco80"').entry.labels.names) == 80


@pytest.mark.parametrize("base", zoo.names())
def test_a_new_file_means_what_its_comments_say(tmp_path, base):
    text = template("pets", zoo.get(base)).replace("# [published]", "[published]")
    lines = [line.removeprefix("# ") if " = " in line and line.startswith("# ") else line for line in text.splitlines()]
    content = tomllib.loads("\n".join(line for line in lines if not line.startswith("# ")))
    for key in ("labels", "checkpoint", "layout", "weights"):
        del content[key]
    found = resolve(parse(content, where="", folder=tmp_path), None).entry
    entry = zoo.get(base)
    assert (found.input, found.preprocess, found.normalize) == (entry.input, entry.preprocess, entry.normalize)
    assert (found.head, found.backbone) == (entry.head, entry.backbone)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('bsae = "x"', "bsae: unknown key; did you mean base?"),
        ("[input]\nwidht = 3\nheight = 64", "[input] widht: unknown key; did you mean width?"),
        ("mean = [0, 0, 0]", "mean: unknown key; it belongs into the table [preprocess]"),
        ("[input]\nwidth = 256", "[input] height: field required"),
        ("[input]\nwidth = 8\nheight = 64", "[input] width: input should be greater than or equal to 32"),
        ("[preprocess]\nmean = [123.0, 117.0, 104.0]", "mean is for values in 0..1; divide by 255"),
        ("[preprocess]\nstd = [0, 1, 1]", "std must be above 0"),
        ('[preprocess]\nresize = "squash"\nshorter_side_px = 99', "shorter_side_px: belongs to resize"),
        ('[preprocess]\nresize = "crop"\ncrop_share = 0.9', 'crop_share: belongs to resize = "cover"'),
        ("[head]\nrates = [1, 2, 3]", "[head] rates: the head classifier of mobilevit_xxs_classify has no such option"),
        ('layout = "timm"', "layout and weights belong to a checkpoint"),
        ('torchscript = "a.pt"', "give either base"),
        ('base = "mobilevit_xx_classify"', "did you mean"),
        ('name = "mobilevit_xs_classify"', "is a model of the zoo"),
        ('name = "Pets!"', "name: string should match"),
        ('labels = "absent.txt"', "No such file"),
        ('labels = ["a", "a"]', "labels 1 and 2 are both 'a'"),
        ('version = "new"', "version: string should match"),
        ("[published]\ntop2 = 3", "published has 'top2'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, text, said):
    with pytest.raises(DefinitionError) as caught:
        resolved(tmp_path, text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name = ", "not TOML"),
        (b"\x89PNG\xff", "not UTF-8"),
        (b"#" * (2**20 + 1), "over 1 MiB"),
        (b'name = "pets"', "give either base"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, said):
    path = tmp_path / "pets.toml"
    path.write_bytes(content)
    with pytest.raises(DefinitionError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_paths_are_relative_to_the_file(tmp_path):
    path = tmp_path / "pets.toml"
    path.write_text(f'name = "pets"\nbase = "{BASE}"\nlabels = "a.txt"\ncheckpoint = "runs/best.pt"\n')
    definition, text = read(path)
    assert definition.labels == tmp_path / "a.txt"
    assert definition.checkpoint == tmp_path / "runs/best.pt"
    assert text == path.read_text()


def test_a_module_of_ones_own_needs_its_task_labels_and_input(tmp_path):
    with pytest.raises(DefinitionError, match="task and labels and input must be given"):
        parse({"name": "a", "torchscript": "a.pt"}, where="a.toml", folder=tmp_path)
