"""Model card: what it says stays true when a model is calibrated later."""

import pytest

from edje_jax.weights.card import state_calibration

CALIBRATED = "Scores are calibrated: `calibration.json`"


@pytest.mark.parametrize(
    ("card", "before", "after"),
    [
        ("# A\n\n## Use\n\nSo.\n\n## Results\n\nGood.\n", "So.\n\n", "\n\n## Results\n\nGood.\n"),
        ("# A\n\n## Use\n\nSo.\n", "So.\n\n", "\n"),
        ("An own card, café", "An own card, café\n\n", "\n"),
    ],
)
def test_a_calibration_is_stated_once_and_the_rest_of_the_card_stays(tmp_path, card, before, after):
    path = tmp_path / "README.md"
    path.write_text(card, "latin-1")
    state_calibration(tmp_path)
    text = path.read_text("latin-1")
    start, found, end = text.partition(CALIBRATED)
    assert found and start.endswith(before) and end.endswith(after)
    for line in card.splitlines():
        assert line in text
    state_calibration(tmp_path)
    assert path.read_text("latin-1") == text


def test_a_folder_without_a_card_gets_none(tmp_path):
    state_calibration(tmp_path)
    assert list(tmp_path.iterdir()) == []
