"""Fine-grained visual classification: five data sets in the splits of Visual Prompt Tuning (arXiv 2203.12119).

    mosa tune --task fgvc/cub --data-dir CUB_200_2011
    mosa tune --task fgvc/cub --data-dir CUB_200_2011 --recipe paper

`train.json`, `val.json` and `test.json` of VPT lie in the data set's own folder. Oxford Flowers and Stanford Cars are
also read as torchvision has them: the flowers then come with the same sets, and the cars with a validation set that is
drawn here.
"""

from dataclasses import replace

from training.tasks.base import REAL
from training.tasks.benchmark import Benchmark, Reader
from training.tasks.torchvision_sets import TRAIN_TEST, TRAIN_VAL_TEST, Torchvision
from training.tasks.vpt_json import VptJson

RECIPE = replace(REAL, batch_size=64, augment="crop")

JSON = "and VPT's splits from the page that the README of github.com/KMnP/vpt names"


def task(
    name: str, title: str, classes: int, counts: tuple[int, int, int], licence: str, home: str, *readers: Reader
) -> Benchmark:
    """One of the data sets; its folder below a folder of many is that of VPT's configuration."""
    place = {"cub": "CUB_200_2011", "flowers": "OxfordFlower", "dogs": "Stanford-dogs", "cars": "Stanford-cars"}
    return Benchmark(
        name=f"fgvc/{name}",
        title=title,
        classes=classes,
        counts=counts,
        licence=licence,
        source=f"the images from {home}, {JSON}",
        place=f"fgvc/{place.get(name, name)}",
        readers=readers,
        recipe=RECIPE,
    )


FGVC = (
    task(
        *("cub", "CUB-200-2011", 200, (5_394, 600, 5_794), "non-commercial research"),
        "data.caltech.edu/records/65de6-vp158",
        VptJson("images"),
    ),
    task(
        *("nabirds", "NABirds", 555, (21_536, 2_393, 24_633), "non-commercial research"),
        "info.allaboutbirds.org/nabirds",
        VptJson("images"),
    ),
    task(
        *("flowers", "Oxford Flowers", 102, (1_020, 1_020, 6_149), "none stated"),
        "www.robots.ox.ac.uk/~vgg/data/flowers",
        VptJson(),
        Torchvision("Flowers102", "flowers-102/jpg", TRAIN_VAL_TEST),
    ),
    task(
        *("dogs", "Stanford Dogs", 120, (10_800, 1_200, 8_580), "ImageNet's terms"),
        "vision.stanford.edu/aditya86/ImageNetDogs",
        VptJson("Images"),
    ),
    task(
        *("cars", "Stanford Cars", 196, (7_329, 815, 8_041), "research"),
        "ai.stanford.edu/~jkrause/cars/car_dataset.html",
        VptJson(),
        Torchvision("StanfordCars", "stanford_cars/devkit", TRAIN_TEST),
    ),
)
"""In the order of published tables."""
