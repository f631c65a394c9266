"""The epochs of a run: those that have not run yet run now, and each ends with a checkpoint in the run's folder."""

from pathlib import Path

from mosa_deploy.bundles.record import CHECKPOINT
from training import run
from training.events import write_events
from training.loop import Row, Trainer, Watch
from training.scores import early_ending, figure_of, in_words


def fit(trainer: Trainer, out: Path, resume: bool, watch: Watch | None) -> list[Row]:
    """Run the remaining epochs, with a checkpoint after each; returns the rows of the history."""
    checkpoint = out / CHECKPOINT
    if resume and checkpoint.is_file():
        trainer.load(checkpoint)
        print(f"resumed after epoch {trainer.state.epoch}")

    def finished(trainer: Trainer) -> None:
        if not trainer.computing.ranks.first:
            return
        trainer.save(checkpoint)
        run.write_history(out, trainer.state.history)
        write_events(out, trainer.state.history)
        row = trainer.state.history[-1]
        print(
            f"epoch {row['epoch']:.0f}/{trainer.recipe.epochs}: cross entropy {row['cross_entropy']:.3f},"
            f" consistency {row['consistency']:.3f}, {in_words(figure_of(row))} {row[figure_of(row)]:.4f},"
            f" {row['images_per_second']:.0f} images/s"
            + (f", {trainer.time_left()} left" if row["epoch"] < trainer.recipe.epochs else ""),
            flush=True,
        )
        if watch is not None:
            watch(trainer.state.history)

    trainer.fit(finished)
    if ending := early_ending(trainer.state.history, trainer.recipe):
        print(ending)
    return trainer.state.history
