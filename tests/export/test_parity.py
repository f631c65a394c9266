from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import cosine

from export.parity import FP32, TOLERANCES, Chain, Link, Tolerance, compare_outputs, table
from mosa_deploy.adapters.restore import restore
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.calibration import Samples
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import ParityError

TOLERANCE = FP32.max_error
FIRST = np.array([[1.0, -4.0], [2.0, 1.0]], dtype=np.float32)
SECOND = np.array([[1.0, -4.0], [2.0, 3.0]], dtype=np.float32)


def link(max_error: float) -> Link:
    return Link("merged", "folded", max_error, mean_error=0.0, cosine=1.0, top1_agreement=1.0)


@pytest.fixture
def chain(parts_run: Path) -> Chain:
    return Chain(Bundle.load(parts_run))


def test_errors_are_relative_to_the_largest_value_of_the_first() -> None:
    found = compare_outputs("a", FIRST, "b", SECOND)
    assert (found.first, found.second) == ("a", "b")
    assert found.max_error == 2 / 4
    assert found.mean_error == 2 / 4 / 4
    assert compare_outputs("b", 10 * FIRST, "a", 10 * SECOND).max_error == 2 / 4


def test_cosine_is_the_worst_row_s_and_agreement_the_share_of_equal_classes() -> None:
    found = compare_outputs("a", FIRST, "b", SECOND)
    assert found.cosine == pytest.approx(1 - cosine(FIRST[1], SECOND[1]), abs=1e-9)
    assert found.top1_agreement == 0.5


@pytest.mark.parametrize("place", ["first", "second"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_finite_never_holds(place: str, value: float) -> None:
    broken = FIRST.copy()
    broken[0, 0] = value
    assert not compare_outputs(
        "a", broken if place == "first" else FIRST, "b", FIRST if place == "first" else broken
    ).holds


def test_a_single_class_is_not_spread_over_many() -> None:
    assert not compare_outputs("a", np.ones((2, 1), dtype=np.float32), "b", np.ones((2, 3), dtype=np.float32)).holds


def test_a_link_holds_up_to_the_tolerance_and_no_further() -> None:
    assert link(TOLERANCE).holds
    assert not link(np.nextafter(TOLERANCE, 1)).holds


def test_a_link_is_judged_by_its_own_tolerance_in_both_measures() -> None:
    wide = Tolerance(max_error=0.6, cosine=0.8, reason="")
    found = compare_outputs("a", FIRST, "b", SECOND, wide)
    assert 0.8 < found.cosine < 0.9
    assert found.holds
    assert not compare_outputs("a", FIRST, "b", SECOND, Tolerance(0.6, 0.9, "")).holds
    assert not compare_outputs("a", FIRST, "b", SECOND, Tolerance(0.4, None, "")).holds


def test_every_tolerance_says_why_and_none_lets_an_unrelated_answer_pass() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((2, 8, 10)).astype(np.float32)
    for tolerance in TOLERANCES.values():
        assert len(tolerance.reason) > 40
        assert not compare_outputs("a", one, "b", other, tolerance).holds
    assert TOLERANCES["fp16"].cosine == 0.999


def test_accuracy_is_that_of_all_labelled_images_and_of_no_others(parts_run: Path) -> None:
    bundle = Bundle.load(parts_run)
    height, width = bundle.record.preprocess.size
    images = np.zeros((4, height, width, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = [20, 0, 10, 20]
    chain = Chain(bundle, Samples(images, images, np.array([2, 0, 1, 1])), compared=2)
    assert len(chain.inputs) == chain.canaries + 2

    def answer(inputs: Array) -> Array:
        order = np.unique(chain.preprocess.normalise(images)[:, 0, 0, 0])
        return np.eye(3, dtype=np.float32)[np.searchsorted(order, inputs[:, 0, 0, 0])]

    assert chain.accuracy("x.onnx", answer, batch=3) == 0.75
    assert Chain(bundle).accuracy("x.onnx", answer) is None


def test_accuracy_ends_with_the_images_after_which_it_cannot_be_enough(parts_run: Path) -> None:
    bundle = Bundle.load(parts_run)
    images = np.zeros((10, *bundle.record.preprocess.size, 3), dtype=np.uint8)
    chain = Chain(bundle, Samples(images, images, np.array([0, 0, 1, 0, 1, 0, 0, 1, 0, 0])))
    seen: list[int] = []

    def answer(inputs: Array) -> Array:
        seen.append(len(inputs))
        return np.eye(3, dtype=np.float32)[np.zeros(len(inputs), dtype=np.int64)]

    assert chain.accuracy("x.onnx", answer, 2, enough=lambda most: most >= 0.85) == 0.8
    assert seen == [2, 2, 2]
    assert chain.accuracy("x.onnx", answer, 2, enough=lambda most: most >= 0.7) == 0.7


def test_a_branch_is_compared_with_the_stage_that_it_names(chain: Chain) -> None:
    logits: Array = np.log(chain.bundle.canary.probabilities) * np.float32(chain.bundle.record.temperature)
    for stage in ("expectation", "ONNX"):
        chain.add(stage, logits)
    near = logits * np.float32(1.001)
    found = chain.branch(chain.compare("expectation", "half.onnx", near, TOLERANCES["fp16"]))
    assert (found.first, found.second) == ("expectation", "half.onnx")
    assert found.max_error == pytest.approx(1e-3, rel=1e-2)
    # The way goes on from where it was.
    chain.add("shared ONNX", logits)
    assert (chain.links[-1].first, chain.links[-1].max_error) == ("ONNX", 0)
    with pytest.raises(ParityError, match=r"^'parts': ONNX and wrong\.onnx differ by .*, or this runner .*$"):
        chain.branch(chain.compare("ONNX", "wrong.onnx", -logits, TOLERANCES["int8"]))


def test_the_canary_is_compared_after_the_temperature(chain: Chain, parts_run: Path) -> None:
    model = restore(Bundle.load(parts_run))
    chain.add_model("expectation", model)
    assert chain.links[0].holds
    colder = chain.bundle.record.model_copy(update={"temperature": 1.0})
    other = Chain(Bundle(colder, chain.bundle.tensors, chain.bundle.canary))
    other.add_model("expectation", model)
    assert other.links[0].max_error > 100 * TOLERANCE


def test_the_first_broken_pair_is_named_in_one_line(chain: Chain) -> None:
    logits: Array = np.log(chain.bundle.canary.probabilities) * np.float32(chain.bundle.record.temperature)
    for stage, values in (("expectation", logits), ("merged", logits), ("folded", -logits), ("ONNX", logits)):
        chain.add(stage, values)
    assert [link.holds for link in chain.links] == [True, True, False, False]
    with pytest.raises(ParityError, match=r"^'parts': merged and folded differ by 2\.0e\+00 .*these very weights$"):
        chain.require()
    lines = table(chain.links).splitlines()
    assert [line.split()[1:4:2] for line in lines] == [
        ["canary", "expectation"],
        ["expectation", "merged"],
        ["merged", "folded"],
        ["folded", "ONNX"],
    ]
