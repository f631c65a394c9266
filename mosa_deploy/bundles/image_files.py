"""Which files are images, by their names."""

import os
from pathlib import Path

from PIL import Image

from mosa_deploy.bundles.decode import FORMATS


def image_suffixes() -> set[str]:
    """The suffixes of images that can be decoded, e.g. `.jpg`."""
    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in (*FORMATS, "MPO")}


def list_images(folder: Path) -> list[Path]:
    """The images below a folder in the order of their paths; hidden ones are left out."""
    suffixes, found = image_suffixes(), list[Path]()
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in suffixes)
