import pytest

# A failed `assert` of the helpers then shows its values, as one of a test does.
pytest.register_assert_rewrite("tests.support")
