"""The event file of a run for TensorBoard: `tensorboard --logdir runs`.

Each run has one event file. Every call appends only the events that the file does not hold yet, so TensorBoard shows
each epoch once, even if the run was killed and resumed.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.loop import Row

EVENTS = "events.out.tfevents.run"
"""TensorBoard finds its files by `tfevents` in the name. Its own writer would add the name of the machine."""

FRAME = 16
"""Bytes around each record: its length, and checksums of the length and of the content."""


def write_events(out: Path, rows: list[Row], closing: Any = None) -> None:
    """Append the rows that the file lacks, as steps 1, 2, ..., and the `closing` summary at the last step."""
    # Importing TensorBoard takes a second: --help and errors in flags should not wait for it.
    from tensorboard.backend.event_processing import event_file_loader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    events = [Event(file_version="brain.Event:2")]
    events += [Event(step=step, summary=scalars(row)) for step, row in enumerate(rows, 1)]
    events += [Event(step=len(rows), summary=closing)] if closing else []
    path = out / EVENTS
    held = list(event_file_loader.RawEventFileLoader(str(path)).Load()) if path.is_file() else []
    if len(held) > len(events):
        held = []  # They belong to an earlier run in this folder.
    with path.open("r+b" if path.is_file() else "wb") as handle:
        # A record that a killed run left incomplete is overwritten.
        handle.truncate(handle.seek(sum(len(record) + FRAME for record in held)))
        writer = RecordWriter(handle)
        for event in events[len(held) :]:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())


def scalars(metrics: Mapping[str, float]) -> Any:
    """A summary with one curve per name, except `epoch`, which is the step."""
    from torch.utils.tensorboard.summary import scalar

    return joined([scalar(name, value) for name, value in metrics.items() if name != "epoch"])


def closing(text: str, pictures: list[Path], settings: dict[str, Any], metrics: dict[str, float]) -> Any:
    """The summary of a finished run: a text in Markdown, PNG files, and a row in the table of hyperparameters.

    The metrics of the kept epoch, which need not be the last one, become curves of one point, `kept/<name>`.
    """
    from torch.utils.tensorboard import summary

    kept = {f"kept/{name}": value for name, value in metrics.items()}
    images = [
        summary.image(path.stem, np.asarray(Image.open(path).convert("RGB")), dataformats="HWC") for path in pictures
    ]
    return joined([summary.text("report", text), *images, *summary.hparams(settings, kept), scalars(kept)])


def joined(summaries: list[Any]) -> Any:
    """Merge several summaries into one, so that they become one record."""
    whole = type(summaries[0])()
    for summary in summaries:
        whole.MergeFrom(summary)
    return whole
