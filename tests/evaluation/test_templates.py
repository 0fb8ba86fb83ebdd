from __future__ import annotations

import numpy as np
import pytest

from lafs_ray.errors import DataError
from lafs_ray.evaluation.templates import TEMPLATE_FARS, image_features, pair_scores, parse_mode, template_features
from lafs_ray.evaluation.verification import roc_curve
from tests.golden_cases import GoldenCase, load_case

# The case's own: the reference sums float32 features, ours float64.
FEATURE_TOLERANCE = SCORE_TOLERANCE = 1e-6
# Counts divided by counts; a score's 1e-6 changes no order in this case.
RATE_TOLERANCE = 1e-9


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    return load_case("g4_ijb")


@pytest.mark.parametrize("mode", ["F1N1D1", "F1N0D1", "F0N1D0"])
def test_templates__recorded_case(case: GoldenCase, mode: str) -> None:
    """Template features, scores, TAR at FAR 1e-6 … 1e-1 and area equal the reference's."""
    given = case.inputs
    halves = given["img_feats"].reshape(len(given["img_feats"]), 2, -1)
    features = image_features(halves, given["face_scores"], parse_mode(mode))
    found, numbers = template_features(features, given["templates"], given["medias"])
    assert np.array_equal(numbers, case.outputs["unique_templates"])
    if mode == "F1N1D1":
        expected = case.outputs[f"{mode}/template_feats"]
        assert np.abs(found - expected).max() <= FEATURE_TOLERANCE
    scores = pair_scores(found, numbers, given["p1"], given["p2"])
    assert np.abs(scores - case.outputs[f"{mode}/score"]).max() <= SCORE_TOLERANCE
    curve = roc_curve(scores, given["label"] == 1)
    rates = np.array([curve.tar_at(far) for far in TEMPLATE_FARS])
    assert np.abs(rates[:, 0] - case.outputs[f"{mode}/tar"]).max() <= RATE_TOLERANCE
    assert np.abs(rates[:, 1] - case.outputs[f"{mode}/far_used"]).max() <= RATE_TOLERANCE
    assert abs(curve.area - case.outputs[f"{mode}/auc"]) <= RATE_TOLERANCE


def test_template_features__naive_loop() -> None:
    """Media are averaged within a template only: equal media of two templates stay apart."""
    generator = np.random.default_rng(0)
    features = generator.standard_normal((40, 3))
    templates, medias = generator.integers(0, 6, 40) * 7, generator.integers(0, 3, 40)
    found, numbers = template_features(features, templates, medias)
    assert numbers.tolist() == sorted(set(templates.tolist()))
    for row, number in zip(found, numbers, strict=True):
        mine = templates == number
        total = sum(features[mine & (medias == m)].mean(axis=0) for m in set(medias[mine]))
        # Sums of at most 40 float64 numbers in another order.
        np.testing.assert_allclose(row, total / np.linalg.norm(total), atol=1e-12)


def test_image_features__centered() -> None:
    """Centering removes the mean of the flip sums before the norm is taken away."""
    both = np.random.default_rng(1).standard_normal((5, 2, 4)) + 10
    plain = image_features(both, np.ones(5), parse_mode("F1N1D0"))
    centered = image_features(both, np.ones(5), parse_mode("F1N1D0"), centered=True)
    np.testing.assert_allclose(centered, plain - plain.mean(axis=0))
    assert np.abs(centered.mean(axis=0)).max() < 1e-14


@pytest.mark.parametrize("text", ["F1N1", "f1n1d1", "F2N1D1", ""])
def test_parse_mode__other_texts(text: str) -> None:
    """A mode is written as the reference writes it."""
    assert str(parse_mode("F0N1D0")) == "F0N1D0"
    with pytest.raises(DataError, match="test mode") as raised:
        parse_mode(text)
    assert raised.value.found == repr(text)
