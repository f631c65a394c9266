"""Handwritten digits: 1,797 images of 8 x 8 pixels that come with scikit-learn, so nothing is downloaded.

    mosa tune --task digits

Split 60/20/20, stratified. Test accuracy, mean of 5 seeds: linear 0.964, dense adapter 0.989, MoSA with 2 experts (the
preset) 0.981, with 4 experts 0.973. E. Alpaydin and C. Kaynak, UCI ML hand-written digits, 1998.
"""

from functools import partial
from pathlib import Path

import numpy as np

from mosa_deploy.backbones.names import EMBEDDED
from mosa_deploy.bundles.decode import encode
from mosa_deploy.bundles.preprocess import Pixels
from training.recipe import Recipe
from training.tasks.base import PERCENTAGES, Example, Splits, shares, stratified


class Digits:
    """10 classes, light digits on a dark background."""

    name = "digits"
    recipe = Recipe(backbone=EMBEDDED, experts=2, scale=1.0, epochs=8, batch_size=16, lr=1e-2)
    squash = False

    def splits(self, data_dir: Path | None, split: str | None) -> Splits:
        """See `Task.splits`; `data_dir` and `split` are ignored."""
        from sklearn.datasets import load_digits

        data = load_digits()
        grey = np.round(data.images * (255 / 16)).astype(np.uint8)
        examples = [
            Example(f"digits/{i}", partial(png, image), int(label))
            for i, (image, label) in enumerate(zip(grey, data.target, strict=True))
        ]
        classes = tuple(map(str, range(10)))
        return Splits(classes, *stratified(examples, shares(PERCENTAGES), classes), note="60/20/20, stratified")


def png(grey: Pixels) -> bytes:
    """Encode a grey image (H, W) as RGB."""
    return encode(np.repeat(grey[:, :, None], 3, axis=2))
