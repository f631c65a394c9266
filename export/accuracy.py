"""The accuracy of a converted task on the user's own class folders: a wrong conversion is refused."""

from collections.abc import Sequence

import numpy as np

from mosa_deploy.bundles.preprocess import Array
from mosa_deploy.errors import ConfigError

FEW = 3
"""A class is said to be never right only if it has this many images."""

BLIND = (
    "this finds a wrong class order, pooling or kind of task; it cannot find a small difference in preprocessing, a"
    " wrong temperature, or two rare classes in each other's place: compare some probabilities with your own library"
)
"""What the user is told beside the accuracy."""


def default_minimum(classes: int) -> float:
    """Halfway between chance and 1."""
    return (1 + 1 / classes) / 2


def check_accuracy(
    probabilities: Array, labels: Sequence[str | None], classes: Sequence[str], minimum: float | None
) -> str:
    """What to say of the accuracy on the images that have labels, which are names in `classes`.

    Raises:
        ConfigError: it is below the minimum.
    """
    labelled = [i for i, label in enumerate(labels) if label is not None]
    expected = np.array([classes.index(label) for label in labels if label is not None])
    right = probabilities[labelled].argmax(1) == expected
    limit = default_minimum(len(classes)) if minimum is None else minimum
    said = f"accuracy {right.mean():.3f} on {len(labelled)} images of --images"
    never = [name for i, name in enumerate(classes) if (expected == i).sum() >= FEW and not right[expected == i].any()]
    if never:
        said += f"; never right: {', '.join(never)}"
    if right.mean() < limit:
        raise ConfigError(
            f"{said}: below --min-accuracy {limit:.3g}, so the class order, the pooling or the preprocessing may be"
            " wrong; give --classes, --pool, --act or --preprocess, or a lower --min-accuracy if the task is that hard"
        )
    return said
