"""int8 graphs of a target to try: all products in int8, smoothed and compensated; then ever more of them in fp32."""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx

from export.compensate import compensate
from export.int8 import constant_products, to_int8
from export.left_out import in_fp32, most_harmful
from export.smooth import smooth
from export.targets import ExportTarget
from mosa_deploy.bundles.bundle import Bundle
from mosa_deploy.bundles.graph_index import Exponents
from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import listed
from mosa_deploy.runtimes.names import Quantisation

COMPENSATED_ON = 64
"""How many calibration images weights are rounded on. Photos of 98 px have 50 tokens each."""

RANKED_ON = 8
"""How many calibration images show which products int8 changes most."""


@dataclass(frozen=True)
class Attempt:
    """An int8 graph that may lose little enough."""

    model: onnx.ModelProto
    target: ExportTarget
    """What feeds it: the rows of its banks are scaled."""
    exponents: Exponents
    """Those of the scales for its banks."""
    left_out: tuple[str, ...]
    """The weights of the products that stay in fp32, the most harmful first."""
    products: int
    """How many products with a constant weight there are."""

    @property
    def said(self) -> str:
        """Which products stay in fp32, in words; empty if none."""
        if not self.left_out:
            return ""
        names = listed([weight.removesuffix(".weight") for weight in self.left_out])
        return f"{len(self.left_out)} of {self.products} products stay in fp32: {names}"


def attempts(target: ExportTarget, bundle: Bundle, calibration: Array, quantisation: Quantisation) -> Iterator[Attempt]:
    """Quantise all products; then leave out 1, 2, 4 and so on of the most harmful ones, at most half of them.

    `calibration` holds images (n, 3, H, W). With more than half of the products in fp32 a file would hardly be faster.
    """
    graph = onnx.load(target.path)
    smoothed = smooth(graph, target.feeds(calibration))
    scaled = target.scaled(bundle, smoothed.exponents)
    nearest = to_int8(smoothed.model, scaled.feeds(calibration), quantisation)
    whole = compensate(smoothed.model, nearest, [*scaled.feeds(calibration[:COMPENSATED_ON])])
    products = len(constant_products(graph))
    yield Attempt(whole, scaled, smoothed.exponents, (), products)
    weights = {node.name: node.input[1] for node in smoothed.model.graph.node if len(node.input) > 1}
    ranked = most_harmful(smoothed.model, whole, (scaled.feed(image[None]) for image in calibration[:RANKED_ON]))
    count = 1
    while count <= products // 2:
        left_out = tuple(weights[name] for name in ranked[:count])
        model = in_fp32(smoothed.model, whole, ranked[:count])
        yield Attempt(model, scaled, smoothed.exponents, left_out, products)
        count *= 2
