"""The names of runners and precisions, each written once. Nothing is imported here but the standard library's types."""

from typing import Literal, get_args

Arithmetic = Literal["fp32", "tf32", "fp16", "bf16", "int8"]
"""The precision to which a runner rounds the factors of matrix products."""

CANARY_TOLERANCE: dict[Arithmetic, float] = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.25}
"""The largest difference of a canary's probability, by the runner's arithmetic.

fp32 sums in another order move one by about 1e-6. fp16 and tf32 have eleven bits, which moves one by up to about 1e-3;
bf16 has eight, eight times as coarse. int8 has eight at most, and an image between two classes moves by tenths: this
finds a broken file, accuracy judges a whole one.
"""

Precision = Literal["fp32", "fp16", "int8"]
"""The precisions that a graph or an engine is exported in."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Quantisation = Literal["cpu", "tensorrt"]
"""What an int8 file was quantised for. Each spoils it for the other: see `export.int8`."""

QUANTISATION_KEY = "mosa_deploy.quantisation"
"""The entry of an ONNX file's metadata that says which."""

Provider = Literal["cpu", "cuda"]

EXECUTION_PROVIDERS: dict[Provider, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""ONNX Runtime's own names."""

PROVIDER_ARITHMETIC: dict[Provider, Arithmetic] = {"cpu": "fp32", "cuda": "tf32"}
"""ONNX Runtime lets CUDA round the factors of products to TF32."""

OpenVinoPrecision = Literal["fp32", "bf16"]

GraphRunnerName = Literal["onnxruntime-cpu", "onnxruntime-cuda", "openvino", "openvino-bf16"]
"""The runners of ONNX files."""

RunnerName = Literal[GraphRunnerName, "tensorrt"]
"""All runners; `tensorrt` runs the engines of either TensorRT library."""

GRAPH_RUNNERS: tuple[GraphRunnerName, ...] = get_args(GraphRunnerName)
RUNNERS: tuple[RunnerName, ...] = get_args(RunnerName)

ARITHMETIC_OF_FILES: dict[GraphRunnerName, dict[Precision, Arithmetic]] = {
    "onnxruntime-cpu": {"int8": "int8", "fp32": PROVIDER_ARITHMETIC["cpu"]},
    "onnxruntime-cuda": {"fp16": "fp16", "fp32": PROVIDER_ARITHMETIC["cuda"]},
    "openvino": {"int8": "int8", "fp32": "fp32"},
    "openvino-bf16": {"int8": "int8", "fp32": "bf16"},
}
"""Runner -> the files that are worth giving to it, and the precision in which it computes each. The first is expected
to be the fastest."""

GRAPH_ARITHMETIC: dict[GraphRunnerName, Arithmetic] = {
    runner: files["fp32"] for runner, files in ARITHMETIC_OF_FILES.items()
}
"""Runner -> the precision in which it computes an fp32 graph."""

DEFAULT_RUNNER: GraphRunnerName = "onnxruntime-cpu"
"""Runs every graph that is exported, and proves the others."""

ON_GPU: tuple[RunnerName, ...] = ("onnxruntime-cuda", "tensorrt")

RuntimeSetting = Literal["auto", RunnerName]
"""The values that MOSA_RUNTIME may have."""

PrecisionSetting = Literal["auto", "fp32", "bf16", "fp16", "int8"]
"""The values that MOSA_PRECISION may have."""
