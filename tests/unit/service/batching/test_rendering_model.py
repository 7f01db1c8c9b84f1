from service.batching.rendering_model import EVIDENCE_REPLIES, EVIDENCE_SECONDS, RenderingModel


def test_each_class_of_size_has_a_prediction_of_its_own() -> None:
    model = RenderingModel()
    for _ in range(EVIDENCE_REPLIES):
        model.observe(100_000_000, 2.0, 10.0)
        model.observe(10_000, 0.001, 10.0)
    assert model.predict(90_000_000, 10.0) == 2.0
    assert model.predict(9_000, 10.0) == 0.001
    assert model.predict(1_000_000, 10.0) == 0.0


def test_one_slow_reply_is_no_evidence() -> None:
    model = RenderingModel()
    model.observe(100, 5.0, 0.0)
    assert model.predict(100, 0.0) == 0.0


def test_evidence_expires_and_does_not_come_back_with_the_next_reply() -> None:
    model = RenderingModel()
    for _ in range(EVIDENCE_REPLIES):
        model.observe(100, 5.0, 10.0)
    assert model.predict(100, 10.0 + EVIDENCE_SECONDS / 2) == 5.0
    assert model.predict(100, 10.0 + EVIDENCE_SECONDS) == 0.0
    model.observe(100, 0.1, 10.0 + EVIDENCE_SECONDS)
    assert model.predict(100, 10.0 + EVIDENCE_SECONDS) == 0.0


def test_the_last_twenty_replies_count() -> None:
    model = RenderingModel()
    for seconds in [4.0] * 100 + [1.0] * 60:
        model.observe(100, seconds, 0.0)
    assert 1.0 < model.predict(100, 0.0) < 1.2
