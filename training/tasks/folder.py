"""Read a folder of class folders."""

from pathlib import Path

from PIL import Image

from mosa_deploy.errors import DataError
from training.tasks.base import Example


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
