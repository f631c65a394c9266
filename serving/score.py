"""Answer every task for every image of an archive, into Parquet files: `mosa score`.

    shards -> encoded images -> pixels, by processes -> graphs, one thread -> rows -> one file per shard

Each arrow holds a few chunks of images, so memory does not grow with the archive. A shard is finished when its file is
renamed into its place: a run that was killed goes on after the last finished shard with the same command. On a cluster
each process does the same with the shards that it is handed.
"""

import sys
from collections.abc import Sequence

from tqdm import tqdm

from mosa_deploy.errors import DataError
from serving.score_decode import LostError
from serving.score_options import ScoreConfig, manifest
from serving.score_output import UNREADABLE, RunFolder
from serving.score_pass import Fault, Scorer, scorer
from serving.score_ray import score_on_ray
from serving.score_shards import LeftOut, Shard, find_shards
from serving.score_tasks import opened
from serving.settings import Settings

LOST_EXIT = 1
"""The exit code if processes died on a shard, and no shard is damaged."""


def score(config: ScoreConfig) -> None:
    """Score every shard that is not finished yet, and list what has no answer.

    Raises:
        MosaError: the images, the tasks or the folder of the run cannot be used; nothing is scored then.
        DataError: shards cannot be read to their ends; the others are finished.
        SystemExit: with code 1 if processes died on shards; the others are finished.
    """
    if config.ray is not None:
        config = config.on_every_machine()
    settings = Settings.from_environment().model_copy(update={"artifacts": config.store})
    if config.ray is not None:
        settings = settings.model_copy(update={"threads": settings.threads or 1})
    left = LeftOut()
    shards = find_shards(config.images, config.column, config.shard_images, left)
    with RunFolder.locked(config.out) as out:
        with opened(settings, config.tasks) as tasks:
            plan = manifest(config, tasks)
            out.claim(plan)
            todo = [shard for shard in shards if not out.finished(shard)]
            before = len(shards) - len(todo)
            faults = list[Fault]()
            if config.ray is None:
                with scorer(config, settings, tasks, out) as here:
                    faults = _score_here(here, todo, left)
        if todo and config.ray is not None:
            faults = score_on_ray(config, settings, plan, todo, out, left)
    unreadable = out.list_unreadable()
    images = sum(note.images for note in out.notes.values())
    if left.line:
        print(left.line)
    if not (images or faults):
        raise DataError(f"no images in {config.images}: give a folder of images, or tar or Parquet files of them")
    done = f"{config.out}: {len(plan.tasks)} tasks have answered {images - unreadable:,} of {images:,} images"
    print(f"{done} in {len(out.notes)} of {len(shards)} shards, {before} of them before")
    if unreadable:
        print(f"not answered: {unreadable:,}, see {config.out / UNREADABLE}")
    if faults:
        reasons = list(dict.fromkeys(map(str, faults)))
        missing = f"{len(faults)} of {len(shards)} shards have no answers: {'; '.join(reasons[:5])}"
        if not all(fault.lost for fault in faults):
            raise DataError(missing)
        print(f"error: {missing}", file=sys.stderr)
        raise SystemExit(LOST_EXIT)


def _score_here(here: Scorer, shards: Sequence[Shard], left: LeftOut) -> list[Fault]:
    """Score shards in this process, and return what is wrong with those that cannot be read."""
    counts = [shard.count for shard in shards]
    total = None if None in counts else sum(count or 0 for count in counts)
    faults = []
    with tqdm(total=total, unit="image", disable=None) as bar:
        for number, shard in enumerate(shards, start=1):
            bar.set_description(f"shard {number} of {len(shards)}")
            try:
                here.score(shard, left, bar.update)
            except (DataError, LostError) as error:
                bar.write(f"no answers for {shard.file}: {error}")
                faults.append(Fault(shard.file, str(error), isinstance(error, LostError)))
    return faults
