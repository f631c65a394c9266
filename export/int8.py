"""int8: quantise matrix products with a constant weight to eight bits, by ONNX Runtime's static quantisation.

    cpu        uint8 activations, int8 weights of seven bits per channel, for ONNX Runtime's integer kernels
    tensorrt   both int8 and symmetric, biases in fp32, as TensorRT's explicit quantisation expects

These stay in fp32: the patch embedding, whose input is the image itself; the products of two activations in attention;
the banks of a shared graph, which change after calibration; norms, softmax and residuals.
"""

import copy
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from export.intermediate import Feed
from export.smooth import PRODUCTS
from mosa_deploy.bundles.calibration import CALIBRATION, Samples
from mosa_deploy.errors import DataError
from mosa_deploy.runtimes.names import QUANTISATION_KEY, Quantisation

LEAST_IMAGES = 32
"""Fewer calibration images would miss the outliers, which determine the ranges of activations."""

SYMMETRIC = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}


class Feeds(CalibrationDataReader):  # type: ignore[misc] # onnxruntime ships no types
    """Calibration batches, one after the other."""

    def __init__(self, feeds: Iterable[Feed]) -> None:
        self.feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        """See `CalibrationDataReader`."""
        return next(self.feeds, None)


def to_int8(model: onnx.ModelProto, feeds: Iterable[Feed], quantisation: Quantisation) -> onnx.ModelProto:
    """The graph with Q/DQ pairs before every product with a constant weight, calibrated on `feeds`.

    Its metadata records what it was quantised for; runners read that.
    """
    prepared = copy.deepcopy(model)
    del prepared.graph.value_info[:]
    # ONNX Runtime's own preparation would fuse nodes for the CPU only; the shapes it needs are inferred anyway.
    add_pre_process_metadata(prepared)
    cpu = quantisation == "cpu"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "int8.onnx"
        quantize_static(
            prepared,
            path,
            Feeds(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(PRODUCTS),
            nodes_to_quantize=constant_products(model),
            per_channel=True,
            # Without VNNI, a CPU adds two products in sixteen bits, which can overflow with eight-bit weights.
            reduce_range=cpu,
            activation_type=QuantType.QUInt8 if cpu else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                # Results of products stay in fp32, because bias and residual are added to them.
                "OpTypesToExcludeOutputQuantization": list(PRODUCTS),
                **({} if cpu else SYMMETRIC),
            },
        )
        quantised = onnx.load(path)
    quantised.metadata_props.add(key=QUANTISATION_KEY, value=quantisation)
    return quantised


def require_enough(samples: Samples | None, folder: Path) -> None:
    """Check that the run in `folder` has enough calibration images to learn the range of every activation.

    Raises:
        DataError: it has none, or too few.
    """
    way_out = "tune the task again, or leave int8 out of --precision"
    if samples is None:
        raise DataError(f"{folder / CALIBRATION}: no such file; int8 is calibrated on it: {way_out}")
    if len(samples.images) < LEAST_IMAGES:
        raise DataError(
            f"{folder / CALIBRATION} holds {len(samples.images)} images, int8 needs at least {LEAST_IMAGES}: {way_out}"
        )


def constant_products(model: onnx.ModelProto) -> list[str]:
    """The names of the nodes that multiply by a constant weight."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type in PRODUCTS and node.input[1] in weights]
