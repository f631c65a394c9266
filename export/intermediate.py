"""Sessions that give values from inside a graph."""

from collections.abc import Mapping
from typing import Any

import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from mosa_deploy.runtimes.names import EXECUTION_PROVIDERS

Feed = Mapping[str, NDArray[Any]]
"""Every input of a graph by name."""


def open_with_outputs(
    model: onnx.ModelProto, values: Mapping[str, int], optimise: bool = True
) -> onnxruntime.InferenceSession:
    """A session on the CPU whose outputs are these values: name -> ONNX's type of its entries.

    Without `optimise` every node runs as it stands, so that no node is missing.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, kind, None) for name, kind in values.items())
    options = onnxruntime.SessionOptions()
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=[EXECUTION_PROVIDERS["cpu"]])


class Values:
    """Gives values in fp32 from inside a graph."""

    def __init__(self, model: onnx.ModelProto, names: list[str]) -> None:
        self.names = names
        self.session = open_with_outputs(model, dict.fromkeys(names, TensorProto.FLOAT)) if names else None

    def of(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """Name -> value for these inputs."""
        if self.session is None:
            return {}
        return dict(zip(self.names, self.session.run(self.names, dict(feed)), strict=True))
