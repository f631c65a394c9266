"""VTAB-1k: 19 tasks with 800 images to train on and 200 for validation (X. Zhai et al., arXiv 1910.04867).

    mosa tune --task vtab/eurosat --data-dir vtab-1k/eurosat
    mosa tune --task vtab/eurosat --data-dir vtab-1k --recipe paper --split 1000

Images are resized straight to the input size, and are not augmented. A class may have no training image: the benchmark
draws them at random. Published tables tune on all 1,000 images, which is `--split 1000`.

Where torchvision has the data set, its layout is read too, with images that are drawn here.
"""

from dataclasses import replace

from training.tasks.annotations import caltech, object_distances, patch, patches, pets, vehicle_distances
from training.tasks.base import REAL
from training.tasks.benchmark import Benchmark, Reader
from training.tasks.torchvision_sets import CIFAR, TRAIN_TEST, Options, Torchvision
from training.tasks.vtab_lists import VtabLists

RECIPE = replace(REAL, epochs=100, batch_size=64, warmup_epochs=10.0)

DRAW = (800, 200)

CLEVR: dict[str, tuple[Options, ...]] = {"train": ({"split": "train"},), "test": ({"split": "val"},)}

LISTS = (
    "make the lists with get_vtab1k.py of github.com/ZhangYuanhan-AI/NOAH, or unpack the archive that"
    " github.com/luogen1996/RepAdapter offers"
)

OTHER_READERS: dict[str, Reader] = {
    "cifar": Torchvision("CIFAR100", "cifar-100-python", CIFAR, DRAW),
    "caltech101": Torchvision(
        "Caltech101", "caltech101/101_ObjectCategories", {"train": ({},)}, DRAW, test=6_084, files=caltech
    ),
    "dtd": Torchvision(
        "DTD", "dtd/dtd/labels", {"train": ({"split": "train"}, {"split": "val"}), "test": ({"split": "test"},)}, DRAW
    ),
    "oxford_flowers102": Torchvision(
        "Flowers102",
        "flowers-102/jpg",
        {"train": ({"split": "train"}, {"split": "val"}), "test": ({"split": "test"},)},
        DRAW,
    ),
    "oxford_iiit_pet": Torchvision(
        "OxfordIIITPet",
        "oxford-iiit-pet/annotations",
        {"train": ({"split": "trainval"},), "test": ({"split": "test"},)},
        DRAW,
        files=pets,
    ),
    "svhn": Torchvision("SVHN", "train_32x32.mat", TRAIN_TEST, DRAW),
    "sun397": Torchvision("SUN397", "SUN397/ClassName.txt", {"train": ({},)}, DRAW, test=21_750),
    "patch_camelyon": Torchvision(
        "PCAM",
        "pcam/camelyonpatch_level_2_split_train_x.h5",
        {"train": ({"split": "train"}, {"split": "val"}), "test": ({"split": "test"},)},
        DRAW,
        files=patches,
        reader=patch,
        needs="h5py",
    ),
    "eurosat": Torchvision("EuroSAT", "eurosat/2750", {"train": ({},)}, DRAW, test=5_400),
    "clevr_count": Torchvision("CLEVRClassification", "clevr/CLEVR_v1.0", CLEVR, DRAW, first=3),
    "clevr_dist": Torchvision("CLEVRClassification", "clevr/CLEVR_v1.0", CLEVR, DRAW, files=object_distances),
    "kitti": Torchvision("Kitti", "Kitti/raw/training", {"train": ({},)}, DRAW, test=711, files=vehicle_distances),
}
"""Folder -> who reads another format than the lists."""


def task(folder: str, title: str, classes: int, test: int, licence: str) -> Benchmark:
    """One of the tasks, by its folder in VTAB-1k."""
    other = OTHER_READERS.get(folder)
    return Benchmark(
        name=f"vtab/{folder}",
        title=title,
        classes=classes,
        counts=(*DRAW, test),
        licence=licence,
        source=LISTS,
        place=f"vtab-1k/{folder}",
        readers=(VtabLists(),) if other is None else (VtabLists(), other),
        recipe=RECIPE,
        squash=True,
    )


VTAB = (
    task("cifar", "CIFAR-100", 100, 10_000, "none stated"),
    task("caltech101", "Caltech101", 102, 6_084, "CC BY 4.0"),
    task("dtd", "Describable Textures", 47, 1_880, "research"),
    task("oxford_flowers102", "Oxford Flowers", 102, 6_149, "none stated"),
    task("oxford_iiit_pet", "Oxford-IIIT Pets", 37, 3_669, "CC BY-SA 4.0"),
    task("svhn", "Street View House Numbers", 10, 26_032, "non-commercial"),
    task("sun397", "SUN397", 397, 21_750, "research"),
    task("patch_camelyon", "PatchCamelyon", 2, 32_768, "CC0"),
    task("eurosat", "EuroSAT", 10, 5_400, "MIT"),
    task("resisc45", "NWPU-RESISC45", 45, 6_300, "research"),
    task("diabetic_retinopathy", "Diabetic Retinopathy", 5, 42_670, "Kaggle's rules of the competition"),
    task("clevr_count", "CLEVR, number of objects", 8, 15_000, "CC BY 4.0"),
    task("clevr_dist", "CLEVR, distance of the nearest object", 6, 15_000, "CC BY 4.0"),
    task("dmlab", "DMLab frames", 6, 22_735, "none stated"),
    task("kitti", "KITTI, distance of the nearest vehicle", 4, 711, "CC BY-NC-SA 3.0"),
    task("dsprites_loc", "dSprites, x-position", 16, 73_728, "Apache-2.0"),
    task("dsprites_ori", "dSprites, orientation", 16, 73_728, "Apache-2.0"),
    task("smallnorb_azi", "smallNORB, azimuth", 18, 12_150, "research"),
    task("smallnorb_ele", "smallNORB, elevation", 9, 12_150, "research"),
)
"""In the order of published tables: seven natural, four specialised and eight structured tasks."""

NATURAL, SPECIALISED, STRUCTURED = VTAB[:7], VTAB[7:11], VTAB[11:]
