"""What TensorBoard reads of a run: `tensorboard --logdir runs`.

One file, and every call appends what it does not hold yet. So whoever watches sees each epoch once, also of a run that
was killed and resumed.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from training.loop import Row

EVENTS = "events.out.tfevents.run"
"""TensorBoard knows its files by `tfevents`; its own writer would put the machine's name here."""

FRAME = 16
"""Bytes around a record: its length, and a checksum of each."""


def write_events(out: Path, rows: list[Row], closing: Any = None) -> None:
    """Append the rows that the file lacks, as steps 1, 2, ..., and the `closing` summary at the last of them."""
    # Importing TensorBoard takes a second, for which --help and a mistaken flag shall not wait.
    from tensorboard.backend.event_processing import event_file_loader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    events = [Event(file_version="brain.Event:2")]
    events += [Event(step=step, summary=scalars(row)) for step, row in enumerate(rows, 1)]
    events += [Event(step=len(rows), summary=closing)] if closing else []
    path = out / EVENTS
    held = list(event_file_loader.RawEventFileLoader(str(path)).Load()) if path.is_file() else []
    if len(held) > len(events):
        held = []  # of a run that has begun anew
    with path.open("r+b" if path.is_file() else "wb") as handle:
        # What a kill cut short is overwritten.
        handle.truncate(handle.seek(sum(len(record) + FRAME for record in held)))
        writer = RecordWriter(handle)
        for event in events[len(held) :]:
            event.wall_time = time.time()
            writer.write(event.SerializeToString())


def scalars(figures: Mapping[str, float]) -> Any:
    """A summary of curves by name; `epoch` is the step already."""
    from torch.utils.tensorboard.summary import scalar

    return joined([scalar(name, value) for name, value in figures.items() if name != "epoch"])


def closing(text: str, pictures: list[Path], settings: dict[str, Any], figures: dict[str, float]) -> Any:
    """The summary of a finished run: a text in Markdown, PNG files, and a line of the table of hyperparameters.

    The figures are curves of one point, `kept/<name>`: where the other curves end need not be what was kept.
    """
    from torch.utils.tensorboard import summary

    kept = {f"kept/{name}": value for name, value in figures.items()}
    images = [
        summary.image(path.stem, np.asarray(Image.open(path).convert("RGB")), dataformats="HWC") for path in pictures
    ]
    return joined([summary.text("report", text), *images, *summary.hparams(settings, kept), scalars(kept)])


def joined(summaries: list[Any]) -> Any:
    """Several summaries as one, which makes one record."""
    whole = type(summaries[0])()
    for summary in summaries:
        whole.MergeFrom(summary)
    return whole
