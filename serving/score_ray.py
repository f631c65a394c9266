"""Score shards on a Ray cluster, by Ray Data: one row per shard, which some process there scores.

A shard is read, answered and written by one process, on storage that all nodes share. So nothing goes through Ray
but the number of a shard, and what is wrong with it; which are finished is read from the files, as on one machine.

Ray begins a shard anew for ever if its process dies. So each beginning is counted in a file, which outlives it.
"""

import json
import logging
import shutil
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mosa_deploy.errors import ConfigError, MosaError
from mosa_deploy.utils.ray_cluster import Needs, connected, prepare
from serving.score_decode import ATTEMPTS, LostError
from serving.score_options import ScoreConfig, manifest
from serving.score_output import Manifest, RunFolder
from serving.score_pass import Fault, Scorer, scorer
from serving.score_shards import LeftOut, Shard
from serving.score_tasks import opened
from serving.settings import SECRET, Settings

PACKAGES = ("onnx", "onnxruntime", "pyarrow", "fsspec")
"""What a process there needs beside this package."""

BEGUN = ".begun"
"""The folder in that of the run in which the attempts at each shard are counted."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What every process of a run on a cluster is given."""

    config: ScoreConfig
    settings: Settings
    plan: Manifest
    """By what the run answers, on every node."""
    shards: Sequence[Shard]
    needs: Needs


def score_on_ray(
    config: ScoreConfig, settings: Settings, plan: Manifest, shards: Sequence[Shard], out: RunFolder, left: LeftOut
) -> list[Fault]:
    """Score shards on a cluster, and return what is wrong with those that have no answers.

    Raises:
        ProviderError: Ray is not installed.
        ConfigError: there is no such cluster, its nodes lack something, or processes there die.
    """
    settings = settings.model_copy(update=dict.fromkeys(SECRET, ()))
    paths = [shard.root for shard in shards] + ([] if "://" in config.store else [Path(config.store)])
    faults, begun = list[Fault](), out.root / BEGUN
    with connected(str(config.ray)) as ray, tqdm(total=len(shards), unit="shard", disable=None) as bar:
        needs = Needs.of([config.out], paths, PACKAGES)
        prepare(ray, needs)
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir()
        try:
            for row in _rows(ray, Job(config, settings, plan, shards, needs)):
                shard = shards[row["number"]]
                left.add_said(json.loads(row["left"]))
                fault = row["fault"]
                if not (fault or out.finished(shard)):
                    fault = f"{out.root / shard.file} is not to be seen here: name an --out that all nodes share"
                if fault:
                    bar.write(f"no answers for {shard.file}: {fault}")
                    faults.append(Fault(shard.file, fault, row["lost"]))
                bar.update()
        except ray.exceptions.RayTaskError:
            raise  # A fault of ours: what users cause comes as a row.
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"--ray {config.ray}: {reason:.300}; what is finished is kept, and the same command goes on"
            ) from None
        finally:
            shutil.rmtree(begun, ignore_errors=True)
    return faults


def _rows(ray: Any, job: Job) -> Iterator[Row]:
    """What came of each shard, as they end."""
    from ray.data import DataContext, from_items

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    cores = job.settings.threads + job.config.decoders
    most = int(ray.cluster_resources().get("CPU", 0)) // cores
    numbers = [{"number": number} for number in range(len(job.shards))]
    data = from_items(numbers, override_num_blocks=len(numbers))
    answers = data.map(
        ShardScorer,
        fn_constructor_args=(job,),
        concurrency=max(1, min(most, len(numbers))),
        num_cpus=cores,
    )
    yield from answers.iter_rows()


class ShardScorer:
    """A process on some node: it opens the tasks once, and scores the shards that it is handed."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._open = ExitStack()
        self._scorer: Scorer | None = None
        self._fault = ""
        try:
            self._scorer = self._opened()
        except MosaError as error:
            self._fault = f"the node {socket.gethostname()}: {error}"

    def _opened(self) -> Scorer:
        """Open the tasks, which have to be answered by the same as on the other nodes."""
        config, settings, needs = self.job.config, self.job.settings, self.job.needs
        if lacking := needs.lacking():
            raise ConfigError("; ".join(lacking))
        tasks = self._open.enter_context(opened(settings, config.tasks))
        if found := manifest(config, tasks).differences(self.job.plan):
            raise ConfigError(f"{'; '.join(found)}: set MOSA_RUNTIME and MOSA_PRECISION to what all nodes can do")
        return self._open.enter_context(scorer(config, settings, tasks, RunFolder(config.out)))

    def __call__(self, row: Row) -> Row:
        """Score a shard, unless a process that was lost had done so before, or too many were lost on it."""
        number = row["number"]
        shard, left, fault, lost = self.job.shards[number], LeftOut(), self._fault, False
        try:
            if self._scorer is not None and not self._scorer.out.finished(shard):
                self._begin(number)
                self._scorer.score(shard, left, lambda count: None)
        except MosaError as error:
            fault, lost = str(error), isinstance(error, LostError)
        return {"number": number, "fault": fault, "lost": lost, "left": json.dumps(left.said())}

    def _begin(self, number: int) -> None:
        """Raises LostError if processes have died in all attempts that a shard has."""
        with (self.job.config.out / BEGUN / str(number)).open("ab") as attempts:
            attempts.write(b".")
            begun = attempts.tell()
        if begun > ATTEMPTS:
            raise LostError(
                f"the process that answers it has died {ATTEMPTS} times, perhaps for want of memory or of an image:"
                " give --workers 1, which finds the image, or a smaller MOSA_MAX_PIXELS, and the same command tries it"
                " again"
            )
