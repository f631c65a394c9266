"""EuroSAT: land use from Sentinel-2, 27,000 RGB images of 64 x 64 in 10 classes.

    python -m training.tune --task eurosat
    python -m training.tune --task eurosat --data-dir FOLDER --backbone vit_tinyd6_patch4_32.cifar10

Splits: `vtab` (800 / 200 / 5,400, our own stratified draw of VTAB's sizes; the default), `full` (16,200 / 5,400 /
5,400), or a file that lists `train|validation|test <class>/<file>`. A folder of another size is split 60/20/20.
Expected accuracy: not measured. P. Helber et al., arXiv 1709.00029.
"""

from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets import EuroSAT

from mosa_deploy.backbone import unreachable
from mosa_deploy.errors import DataError
from training.config import Recipe
from training.tasks.base import Example, Splits, stratified
from training.tasks.folder import read_folder

FOLDER = "2750"
IMAGES = 27_000
CACHE = Path("~/.cache/mosa-deploy").expanduser()
HOST = "https://huggingface.co/datasets/torchgeo/eurosat"
SIZES = {"vtab": (800, 200, 5400), "full": (16_200, 5400, 5400)}


class EuroSat:
    """10 classes of land use and land cover."""

    name = "eurosat"
    recipe = Recipe(
        backbone="vit_base_patch16_224.augreg_in21k", bottleneck=16, epochs=100, warmup_epochs=10.0, batch_size=64
    )
    squash = True

    def splits(self, data_dir: Path | None, split: str | None) -> Splits:
        """See `Task.splits`."""
        classes, examples = read_folder(locate(data_dir))
        if split is not None and split not in SIZES and split != "60-20-20":
            return listed(classes, examples, Path(split))
        if split is None:
            split = "vtab" if len(examples) == IMAGES else "60-20-20"
        if split == "60-20-20":
            note = "split 60/20/20, stratified"
            if len(examples) != IMAGES:
                note = f"{len(examples)} images are not EuroSAT's {IMAGES:,}: {note}"
            return Splits(classes, *stratified(examples, (0.6, 0.2, 0.2)), note=note)
        if len(examples) < sum(SIZES[split]):
            raise DataError(
                f"--split {split} needs {sum(SIZES[split]):,} images, here are {len(examples)}: leave it out"
            )
        return Splits(classes, *stratified(examples, SIZES[split]), note=f"{split}: {SIZES[split]}, our own draw")


def locate(data_dir: Path | None) -> Path:
    """The folder of class folders: below `data_dir`, or in the cache, downloaded once.

    Raises:
        DataError: nothing there, or the download cannot be had.
    """
    if data_dir is not None:
        for folder in (data_dir / FOLDER, data_dir / "eurosat" / FOLDER):
            if folder.is_dir():
                return folder
        raise DataError(f"--data-dir {data_dir}: no {FOLDER}/<Class>/*.jpg in it; give EuroSAT's unpacked folder")
    folder = CACHE / "eurosat" / FOLDER
    if not folder.is_dir():
        fault = unreachable(HOST)
        if fault:
            raise DataError(
                f"no EuroSAT images: tried {folder} and {HOST} ({fault}); download EuroSAT.zip elsewhere and give"
                " --data-dir FOLDER that holds 2750/<Class>/*.jpg, or start with --task digits, which needs nothing"
            )
        try:
            EuroSAT(str(CACHE), download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(f"the download of EuroSAT broke off ({error}): try again, or give --data-dir") from error
    return folder


def listed(classes: tuple[str, ...], examples: Sequence[Example], path: Path) -> Splits:
    """The split that a file lists.

    Raises:
        DataError: no such file, or a line that names no image.
    """
    if not path.is_file():
        raise DataError(
            f"--split {path}: give vtab, full, 60-20-20 or a file of `train|validation|test <class>/<file>`"
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"--split {path} is not text: give a file that lists the sets") from None
    known = {example.name: example for example in examples}
    sets: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for number, line in enumerate(lines, start=1):
        name, _, image = line.partition(" ")
        if name not in sets or image not in known:
            wanted = "`train|validation|test <class>/<file>` of an image here, not yet listed"
            raise DataError(f"{path}:{number}: '{line}' is not {wanted}")
        sets[name].append(known.pop(image))
    return Splits(classes, **sets, note=f"listed in {path.name}")
