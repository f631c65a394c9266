"""What the service says of a task and of its versions."""

from mosa_deploy.bundles.decision import Decision, KeptVersion
from mosa_deploy.client.schema import Task, TaskVersion
from serving.ranking import Ranking
from serving.registry import Entry, Registry


def task_info(entry: Entry, registry: Registry, ranking: Ranking) -> Task:
    """What the service says of a task."""
    record = entry.version.record if entry.version else None
    kept = entry.decision.find(entry.decision.current)
    accuracy = record.metrics.get("validation_accuracy") if record else None
    measured_on = f"validation images of its tuning ({record.dataset})" if record and accuracy is not None else None
    plan = entry.loaded.lane.plan if entry.loaded else None
    lane = registry.lane_of(entry.name, entry.decision, record)
    return Task(
        task=entry.name,
        classes=record.classes if record else (),
        multi_label=record.multi_label if record else False,
        thresholds=record.per_label.thresholds if record and record.per_label else None,
        backbone=record.backbone.folder if record else "",
        method=record.method if record else "",
        bundle=record.sha256 if record else "",
        lane=lane,
        runtime=plan.runtime if plan else None,
        precision=plan.precision if plan else None,
        fallback=entry.loaded.fallback if entry.loaded else None,
        fastest=ranking.said.get(record.backbone.folder) if record else None,
        state="refused" if entry.refused else "active" if entry.loaded else "registered",
        pinned=entry.decision.pinned,
        can_roll_back=entry.decision.previous is not None,
        reason=entry.refused,
        accuracy=accuracy,
        measured_on=measured_on,
        added=kept.added if kept else None,
        served_since=entry.decision.since or (kept.added if kept else None),
        preprocess=record.preprocess.model_dump(mode="json") if record else None,
        unknown=lane == "shared" and record is not None and record.unknown is not None,
    )


def version_info(decision: Decision, kept: KeptVersion) -> TaskVersion:
    """What the service says of a version that is kept."""
    return TaskVersion(
        bundle=kept.digest,
        served=kept.key == decision.current,
        source=kept.source,
        added=kept.added,
        accuracy=kept.accuracy,
        classes=kept.classes,
    )
