"""Your own images, in a folder or a tar archive with one folder per class.

    mosa tune --task folder --name flowers --data-dir FOLDER
    mosa tune --task folder --name flowers --data-dir flowers.tar.gz --split 80-10-10

`<class>/<file>` is split 60-20-20 or as `--split` says; `{train,validation,test}/<class>/<file>` is taken as it is
(`val` and `valid` also mean validation). Without a validation folder, a fifth of train is used for validation. A test
folder is required.
"""

from pathlib import Path

from mosa_deploy.backbones.names import EMBEDDED
from mosa_deploy.errors import DataError
from training.config import Recipe
from training.tasks.base import PERCENTAGES, Splits, draw_sets, shares, stratified
from training.tasks.source import Source, read_classes, read_labelled_sets


class Folder:
    """A task whose classes are the folders in --data-dir."""

    name = "folder"
    recipe = Recipe(backbone=EMBEDDED, experts=2, scale=1.0, epochs=10, batch_size=16, lr=1e-2)
    squash = False

    def splits(self, data_dir: Path | None, split: str | None) -> Splits:
        """See `Task.splits`."""
        if data_dir is None:
            raise DataError("--task folder needs --data-dir: give a folder or a tar archive with one folder per class")
        source = Source.open(data_dir).unwrapped()
        if not source.sets():
            classes, examples = read_classes(source)
            percentages = split or PERCENTAGES
            drawn = stratified(examples, shares(percentages), classes)
            return Splits(classes, *drawn, note=f"{percentages.replace('-', '/')}, stratified")
        if split is not None:
            raise DataError(
                f"--split {split}: {source.name} has sets of its own ({', '.join(source.sets())}); leave it out"
            )
        classes, read = read_labelled_sets(source)
        note = "as the folders say"
        if "validation" not in read:
            fifth = len(read["train"]) // 5
            read |= draw_sets(read["train"], {"train": len(read["train"]) - fifth, "validation": fifth}, classes)
            note += "; validation is a stratified fifth of train"
        return Splits(classes, read["train"], read["validation"], read["test"], note=note)
