import pytest

from mosa_deploy.errors import ConfigError
from training.precision import choose_precision, why_precision

NATIVE, WITHOUT = {"avx2": True, "avx512_bf16": True}, {"avx2": True, "avx512_bf16": False, "amx_bf16": False}


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16"])
def test_auto_is_bf16_on_cpus_that_multiply_in_it(name: str) -> None:
    assert choose_precision("auto", "cpu", {name: True}) == "bf16"


@pytest.mark.parametrize("capabilities", [WITHOUT, {}])
def test_auto_is_fp32_on_other_cpus_and_where_torch_cannot_tell(capabilities: dict[str, bool]) -> None:
    assert choose_precision("auto", "cpu", capabilities) == "fp32"
    assert choose_precision("auto", "cuda", capabilities) == "bf16"


@pytest.mark.parametrize("name", ["fp32", "bf16"])
@pytest.mark.parametrize("capabilities", [NATIVE, WITHOUT])
def test_what_is_given_wins(name: str, capabilities: dict[str, bool]) -> None:
    assert choose_precision(name, "cpu", capabilities) == name
    assert why_precision(name, "cpu", capabilities) == f"steps in {name}"


def test_the_run_says_why() -> None:
    assert why_precision("auto", "cpu", NATIVE) == "steps in bf16 (this CPU has AVX512-BF16)"
    assert why_precision("auto", "cpu", WITHOUT) == "steps in fp32 (this CPU does not multiply in bf16)"
    assert why_precision("auto", "cuda", WITHOUT) == "steps in bf16"


def test_a_precision_that_is_unknown_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^--precision fp8: choose auto, fp32 or bf16$"):
        choose_precision("fp8", "cpu")
