import sys
from contextlib import suppress
from typing import get_args

import pytest

from mosa_deploy.errors import ProviderError
from mosa_deploy.runtimes.names import (
    CANARY_TOLERANCE,
    EXECUTION_PROVIDERS,
    GRAPH_ARITHMETIC,
    GRAPH_RUNNERS,
    PROVIDER_ARITHMETIC,
    RUNNERS,
    Arithmetic,
    Provider,
    RunnerName,
    RuntimeSetting,
)
from mosa_deploy.runtimes.runner import check_runner
from tests.support.walker import new_modules


def test_what_is_known_of_runners_and_precisions_leaves_none_out() -> None:
    assert set(GRAPH_ARITHMETIC) == set(GRAPH_RUNNERS)
    assert set(EXECUTION_PROVIDERS) == set(PROVIDER_ARITHMETIC) == set(get_args(Provider))
    assert set(CANARY_TOLERANCE) == set(get_args(Arithmetic))


def test_the_service_may_be_set_to_every_runner_or_to_auto() -> None:
    assert get_args(RuntimeSetting) == ("auto", *RUNNERS)


@pytest.mark.parametrize("name", RUNNERS)
def test_every_name_is_one_that_can_be_looked_for(name: RunnerName) -> None:
    # It may be missing here, but it is known.
    with suppress(ProviderError):
        check_runner(name)


def test_names_are_read_without_any_library() -> None:
    assert new_modules("import mosa_deploy.runtimes.names") - sys.stdlib_module_names == {"mosa_deploy"}


def test_the_client_knows_the_runners_names_without_a_runtime() -> None:
    assert not new_modules("import mosa_deploy.client.schema") & {"onnxruntime", "openvino", "torch"}
