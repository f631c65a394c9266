"""A folder of one's own: one folder a class.

    python -m training.tune --task folder --name flowers --data-dir FOLDER

Either `FOLDER/<class>/<file>`, split 60/20/20, or `FOLDER/{train,validation,test}/<class>/<file>`, taken as it is.
"""

from pathlib import Path

from PIL import Image

from mosa_deploy import embedded
from mosa_deploy.errors import DataError
from training.config import Recipe
from training.tasks.base import Example, Splits, stratified

SETS = ("train", "validation", "test")


class Folder:
    """Whatever classes the folder holds."""

    name = "folder"
    recipe = Recipe(backbone=embedded.NAME, scale=1.0, batch_size=16, lr=1e-2)
    squash = False

    def splits(self, data_dir: Path | None, split: str | None) -> Splits:
        """See `Task.splits`; `split` means nothing here."""
        if data_dir is None:
            raise DataError("--task folder needs --data-dir: give a folder of one folder a class")
        if not data_dir.is_dir():
            raise DataError(f"--data-dir {data_dir}: no such folder; give a folder of one folder a class")
        if not all((data_dir / name).is_dir() for name in SETS):
            classes, examples = read_folder(data_dir)
            return Splits(classes, *stratified(examples, (0.6, 0.2, 0.2)), note="60/20/20, stratified")
        read = {name: read_folder(data_dir / name) for name in SETS}
        for name in SETS[1:]:
            if read[name][0] != read["train"][0]:
                raise DataError(f"{data_dir / name} has other classes than {data_dir / 'train'}: make them the same")
        train, validation, test = (read[name][1] for name in SETS)
        return Splits(read["train"][0], train, validation, test, note="as the folders say")


def read_folder(folder: Path) -> tuple[tuple[str, ...], list[Example]]:
    """`<folder>/<class>/<file>` -> the class names in sorted order, and every image, named `<class>/<file>`.

    Raises:
        DataError: fewer than two classes, or a class without images.
    """
    classes = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(classes) < 2:
        raise DataError(f"{folder} holds {len(classes)} class folder(s): a task needs at least two")
    suffixes = set(Image.registered_extensions())
    examples: list[Example] = []
    for label, name in enumerate(classes):
        files = sorted(path for path in (folder / name).iterdir() if path.suffix.lower() in suffixes)
        if not files:
            raise DataError(f"class '{name}' in {folder} is empty: add images or remove the folder")
        examples += [Example(f"{name}/{path.name}", path.read_bytes, label) for path in files]
    return classes, examples
