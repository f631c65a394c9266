"""General image classification: CIFAR-100, Food-101 and FGVC-Aircraft with all of their images.

    mosa tune --task gicd/cifar100 --data-dir FOLDER

FOLDER is what torchvision calls the root: it holds `cifar-100-python`, `food-101` or `fgvc-aircraft-2013b`. Aircraft
has a validation set; of the others it is a stratified tenth of the training images.
"""

from training.tasks.benchmark import Benchmark
from training.tasks.fgvc import RECIPE
from training.tasks.torchvision_sets import CIFAR, TRAIN_TEST, TRAIN_VAL_TEST, Torchvision


def task(
    name: str, title: str, classes: int, counts: tuple[int, int, int], licence: str, reader: Torchvision
) -> Benchmark:
    """One of the data sets."""
    return Benchmark(
        name=f"gicd/{name}",
        title=title,
        classes=classes,
        counts=counts,
        licence=licence,
        source=f"torchvision.datasets.{reader.kind}(FOLDER, download=True) fetches it",
        place=f"gicd/{name}",
        readers=(reader,),
        recipe=RECIPE,
    )


GICD = (
    task(
        *("cifar100", "CIFAR-100", 100, (45_000, 5_000, 10_000), "none stated"),
        Torchvision("CIFAR100", "cifar-100-python", CIFAR),
    ),
    task(
        *("food101", "Food-101", 101, (68_175, 7_575, 25_250), "scientific fair use"),
        Torchvision("Food101", "food-101/meta", TRAIN_TEST),
    ),
    task(
        *("aircraft", "FGVC-Aircraft", 100, (3_334, 3_333, 3_333), "non-commercial research"),
        Torchvision("FGVCAircraft", "fgvc-aircraft-2013b/data", TRAIN_VAL_TEST),
    ),
)
