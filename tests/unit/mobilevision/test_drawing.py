import numpy as np
import picture_files
import pytest
from PIL import Image

from mobilevision.drawing import MIN_WIDTH_PX, annotate, colour_of
from service.pb.mobilevision.v1 import vision_pb2
from service.preprocess import upright  # noqa: F401 - see SERVER_ONLY

GRAY = (128, 128, 128)
OFFICIAL = vision_pb2.WEIGHTS_STATE_OFFICIAL
RANDOM = vision_pb2.WEIGHTS_STATE_RANDOM
DEMO = vision_pb2.WEIGHTS_STATE_DEMO
RED, AMBER = (196, 30, 46), (176, 104, 0)


def photo(width: int = 400, height: int = 300) -> bytes:
    return picture_files.encoded(Image.new("RGB", (width, height), GRAY), "PNG")


def used(weights=OFFICIAL):
    return vision_pb2.ModelUsed(name="tiny", weights=weights)


def detection(x_min, y_min, x_max, y_max, *, label=3, name="dog", score=0.9):
    return vision_pb2.Detection(
        box=vision_pb2.Box(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max),
        label=vision_pb2.Label(id=label, name=name, score=score),
    )


def classified(*scores, weights=OFFICIAL):
    labels = [vision_pb2.Label(id=i, name=f"label {i}", score=score) for i, score in enumerate(scores)]
    return vision_pb2.ClassifyResponse(model=used(weights), labels=labels)


def segmented(classes: np.ndarray, names: dict[int, str], weights=OFFICIAL):
    mask = Image.fromarray(classes)
    mask.putpalette(bytes(768))
    return vision_pb2.SegmentResponse(
        model=used(weights),
        mask_png=picture_files.encoded(mask, "PNG"),
        classes=[
            vision_pb2.SegmentedClass(id=i, name=n, area_fraction=(classes == i).mean()) for i, n in names.items()
        ],
    )


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_boxes_are_drawn_on_their_edges_in_their_colour():
    image = annotate(photo(), vision_pb2.DetectResponse(model=used(), detections=[detection(100, 80, 300, 250)]))
    assert image.size == (400, 300)
    drawn = pixels(image)
    colour = list(colour_of(3))
    for y, x in ((150, 100), (150, 299), (249, 200), (80, 290)):
        assert drawn[y, x].tolist() == colour
    assert drawn[150, 200].tolist() == list(GRAY)  # inside
    assert drawn[20, 20].tolist() == list(GRAY)  # outside
    chip = drawn[62:79, 102:130]  # above the box: its name on its colour
    assert (chip == colour).all(-1).mean() > 0.4
    assert (chip != colour).any(-1).any()


def test_best_detection_lies_on_top():
    found = [detection(50, 60, 200, 200, label=1), detection(50, 60, 200, 200, label=2, score=0.4)]
    drawn = pixels(annotate(photo(), vision_pb2.DetectResponse(model=used(), detections=found)))
    assert drawn[150, 50].tolist() == list(colour_of(1))


def test_names_of_neighbours_do_not_cover_each_other():
    found = [detection(100, 80, 300, 250, label=1), detection(102, 82, 298, 248, label=2)]
    drawn = pixels(annotate(photo(), vision_pb2.DetectResponse(model=used(), detections=found)))
    for label in (1, 2):
        assert (drawn == colour_of(label)).all(-1).sum() > 2 * (170 + 200) + 300  # frame and chip


@pytest.mark.parametrize("box", [(0, 0, 400, 300), (399.5, 299.5, 400, 300), (0, 0, 0.2, 0.2), (-0.0, 290, 400, 300)])
def test_boxes_at_the_rim(box):
    image = annotate(photo(), vision_pb2.DetectResponse(model=used(), detections=[detection(*box)]))
    assert image.size == (400, 300)
    assert (pixels(image) == colour_of(3)).all(-1).any()


def test_nothing_found_is_written_on_the_picture():
    drawn = pixels(annotate(photo(), vision_pb2.DetectResponse(model=used())))
    assert (drawn[280:] != GRAY).any()
    assert (drawn[:200] == GRAY).all()


def test_captions_have_bars_in_proportion():
    image = annotate(photo(), classified(1.0, 0.5, 0.0))
    drawn = pixels(image)
    assert (drawn[:300] == GRAY).all()  # the picture itself stays untouched
    assert image.height > 300
    band = drawn[300:, 40:].astype(int)  # right of the swatches
    best, second = (  # columns in which the colour is as high as a bar
        ((np.abs(band - colour).sum(-1) < 10).sum(0) >= 6).sum() for colour in (colour_of(0), (120, 124, 130))
    )
    assert second == pytest.approx(best / 2, rel=0.15)


def test_masks_tint_their_regions_and_leave_the_background():
    classes = np.zeros((300, 400), np.uint8)
    classes[:, 200:] = 7
    drawn = pixels(annotate(photo(), segmented(classes, {7: "car", 0: "background"})))
    assert drawn[150, 50].tolist() == list(GRAY)
    expected = np.array(GRAY) * 0.45 + np.array(colour_of(7)) * 0.55
    assert np.abs(drawn[150, 350] - expected).max() <= 2
    assert drawn[150, 200].min() > 190  # the outline
    legend = drawn[300:]
    assert (legend == colour_of(7)).all(-1).sum() > 100


def test_a_class_that_is_not_background_is_tinted_whatever_its_id():
    drawn = pixels(annotate(photo(), segmented(np.zeros((300, 400), np.uint8), {0: "wall"})))
    assert drawn[150, 50].tolist() != list(GRAY)


def test_pixels_the_model_did_not_see_become_pale():
    drawn = pixels(annotate(photo(), segmented(np.full((300, 400), 255, np.uint8), {})))
    assert drawn[150, 200].min() > 180


def test_a_mask_of_another_picture_is_refused():
    with pytest.raises(ValueError, match="draw a reply on the picture that was sent"):
        annotate(photo(), segmented(np.zeros((10, 10), np.uint8), {}))


@pytest.mark.parametrize(
    "reply",
    [classified(0.5), vision_pb2.DetectResponse(), segmented(np.zeros((300, 400), np.uint8), {})],
    ids=["classify", "detect", "segment"],
)
@pytest.mark.parametrize(("weights", "colour"), [(RANDOM, RED), (DEMO, AMBER), (OFFICIAL, None)])
def test_untrained_weights_are_marked(reply, weights, colour):
    reply.model.weights = weights
    drawn = pixels(annotate(photo(), reply))
    top = (drawn[:6] == (colour or GRAY)).all(-1)
    if colour is None:
        assert not (drawn == RED).all(-1).any()
        assert not (drawn == AMBER).all(-1).any()
    else:
        assert top.all()


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (64, 48), (5000, 40)])
def test_odd_sizes(size):
    for reply in (classified(0.9, 0.1, weights=RANDOM), vision_pb2.DetectResponse(detections=[detection(0, 0, *size)])):
        image = annotate(photo(*size), reply)
        assert image.width >= min(size[0], MIN_WIDTH_PX)


def test_small_pictures_are_enlarged_with_their_boxes():
    reply = vision_pb2.DetectResponse(model=used(), detections=[detection(16, 24, 32, 36)])
    image = annotate(photo(64, 48), reply)
    assert image.width >= MIN_WIDTH_PX
    scale = image.width // 64
    assert pixels(image)[30 * scale, 16 * scale].tolist() == list(colour_of(3))


def test_text_grows_with_the_picture():
    small, large = (annotate(photo(w, h), classified(0.9)).height - h for w, h in ((400, 300), (4000, 3000)))
    assert large > 5 * small


# The server reads these, Pillow does not. The server also teaches Pillow some kinds of TIFF, in the whole process.
# It is imported above, so the result does not depend on which tests ran before.
SERVER_ONLY = {
    "jpeg arithmetic",
    "jpeg without end",
    "jpeg without half of its end",
    "png international text of 2 MiB",
    "png profile of 2 MiB",
    "png text of 2 MiB",
    "tiff 16-bit alpha",
    "tiff 16-bit alpha big-endian",
    "tiff 32-bit rgb",
    "tiff double",
    "tiff double rgb",
    "tiff float rgb",
    "tiff float rgb big-endian",
    "tiff float rgba",
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", sorted(picture_files.PICTURES))
def test_every_kind_of_picture(name):
    if name in SERVER_ONLY:
        with pytest.raises(OSError, match=r"^answered, but the picture cannot be drawn on here: "):
            annotate(picture_files.PICTURES[name], classified(0.9))
    else:
        assert annotate(picture_files.PICTURES[name], classified(0.9)).mode == "RGB"


def test_the_picture_is_shown_upright_and_16_bits_are_scaled():
    turned = annotate(picture_files.rotated(6), classified(0.9))
    assert np.abs(pixels(turned)[5, 5].astype(int) - (255, 0, 0)).max() < 10
    ramp = pixels(annotate(picture_files.sixteen_bit_png(), classified(0.9)))[10]
    assert abs(int(ramp[len(ramp) // 2, 0]) - 128) < 6


def test_colours_of_the_first_classes_differ():
    colours = np.array([colour_of(label) for label in range(12)], int)
    distances = np.abs(colours[:, None] - colours[None]).sum(-1) + 1000 * np.eye(12, dtype=int)
    assert distances.min() > 50


def test_the_colours_of_the_model_are_drawn() -> None:
    assert colour_of(1, ("#000000", "#ff8800")) == (255, 136, 0)
    assert colour_of(2, ("#000000", "#ff8800")) == colour_of(2)
