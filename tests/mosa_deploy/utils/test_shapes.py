import numpy as np
import torch

from mosa_deploy.utils.shapes import shape_faults, shapes_of


def test_shapes_read_the_same_from_numpy_and_torch() -> None:
    assert shapes_of({"a": torch.zeros(2, 3), "b": torch.zeros(())}) == {"a": (2, 3), "b": ()}
    assert shapes_of({"a": np.zeros((2, 3))}) == {"a": (2, 3)}


def test_shape_faults_are_sorted_in_one_line_and_empty_without_any() -> None:
    expected = {"b": (1,), "a": (2, 3), "c": ()}
    assert shape_faults(expected, dict(reversed(expected.items()))) == ""
    found = shape_faults(expected, {"a": (3, 2), "d": (1,), "e": (1,)})
    assert found == "a is (3, 2), not (2, 3); missing b; missing c; unexpected d; unexpected e"
