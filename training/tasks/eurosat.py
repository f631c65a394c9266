"""EuroSAT: land use from Sentinel-2, 27,000 RGB images of 64 x 64 in 10 classes.

    mosa tune --task eurosat
    mosa tune --task eurosat --data-dir FOLDER --backbone vit_tinyd6_patch4_32.cifar10

Splits: `vtab` (800 / 200 / 5,400, our own stratified draw with VTAB's sizes; the default), `full` (16,200 / 5,400 /
5,400), percentages, or a file with one `train|validation|test <class>/<file>` per line. If the folder does not hold
27,000 images, the default is 60-20-20. `--data-dir` may be a tar archive of the folder.
Expected accuracy: not measured. P. Helber et al., arXiv 1709.00029.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mosa_deploy.errors import DataError
from mosa_deploy.utils.folders import cache_folder
from mosa_deploy.utils.network import why_unreachable
from mosa_deploy.utils.text import decode_text
from training.tasks.base import PERCENTAGES, REAL, Example, Splits, shares, stratified
from training.tasks.classes import read_classes
from training.tasks.source import Source

FOLDER = "2750"
IMAGES = 27_000
HOST = "https://huggingface.co/datasets/torchgeo/eurosat"
SIZES = {"vtab": (800, 200, 5400), "full": (16_200, 5400, 5400)}


class EuroSat:
    """10 classes of land use and land cover."""

    name = "eurosat"
    recipe = replace(REAL, epochs=100, batch_size=64, warmup_epochs=10.0)
    squash = True

    def splits(self, data_dir: Path | None, split: str | None) -> Splits:
        """See `Task.splits`."""
        classes, examples = read_classes(locate(data_dir))
        size = f"{len(examples)} images are not EuroSAT's {IMAGES:,}: " if len(examples) != IMAGES else ""
        split = split or (PERCENTAGES if size else "vtab")
        if re.fullmatch("[0-9]+-[0-9]+-[0-9]+", split):
            note = f"{size}split {split.replace('-', '/')}, stratified"
            return Splits(classes, *stratified(examples, shares(split), classes), note=note)
        if split not in SIZES:
            return listed(classes, examples, Path(split))
        if len(examples) < sum(SIZES[split]):
            raise DataError(
                f"--split {split} needs {sum(SIZES[split]):,} images, there are {len(examples)}: leave it out"
            )
        drawn = stratified(examples, SIZES[split], classes)
        return Splits(classes, *drawn, note=f"{split}: {SIZES[split]}, our own draw")


def locate(data_dir: Path | None) -> Source:
    """The class folders: in `data_dir` (a folder or an archive) if given, else in the cache, downloaded once.

    Raises:
        DataError: the images are not there, or the download fails.
    """
    if data_dir is not None:
        source = Source.open(data_dir)
        for inside in (source, source.below("eurosat")):
            if FOLDER in inside.tops():
                return inside.below(FOLDER)
        raise DataError(f"--data-dir {data_dir}: no {FOLDER}/<Class>/*.jpg in it; give EuroSAT's unpacked folder")
    cache = cache_folder()
    folder = cache / "eurosat" / FOLDER
    if not folder.is_dir():
        fault = why_unreachable(HOST)
        if fault:
            raise DataError(
                f"no EuroSAT images: tried {folder} and {HOST} ({fault}); download EuroSAT.zip elsewhere and give"
                " --data-dir FOLDER that holds 2750/<Class>/*.jpg, or start with --task digits, which needs nothing"
            )
        from torchvision.datasets import EuroSAT

        try:
            EuroSAT(str(cache), download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(f"the download of EuroSAT broke off ({error}): try again, or give --data-dir") from error
    return Source.open(folder)


def listed(classes: tuple[str, ...], examples: Sequence[Example], path: Path) -> Splits:
    """Read the split from a file with one `train|validation|test <class>/<file>` per line.

    Raises:
        DataError: there is no such file, or a line names no image or one that an earlier line lists.
    """
    if not path.is_file():
        raise DataError(
            f"--split {path}: give vtab, full, percentages such as {PERCENTAGES}, or a file of"
            " `train|validation|test <class>/<file>`"
        )
    text = decode_text(path.read_bytes())
    if "\0" in text:
        raise DataError(f"--split {path} is not text: give a file that lists the sets")
    lines = text.splitlines()
    known = {example.name: example for example in examples}
    sets: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for number, line in enumerate(lines, start=1):
        name, _, image = line.partition(" ")
        if name not in sets or image not in known:
            wanted = "`train|validation|test <class>/<file>` of an image here, not yet listed"
            raise DataError(f"{path}:{number}: '{line}' is not {wanted}")
        sets[name].append(known.pop(image))
    return Splits(classes, sets["train"], sets["validation"], sets["test"], note=f"listed in {path.name}")
