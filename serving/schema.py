"""What the service answers."""

from pydantic import BaseModel, ConfigDict


class Prediction(BaseModel):
    """One class with its calibrated probability."""

    label: str
    score: float


class Answer(BaseModel):
    """The classes of one image, likeliest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "task": "digits",
                "predictions": [{"label": "7", "score": 0.98}, {"label": "1", "score": 0.01}],
                "bundle": "3f0c8b5a9d21",
                "milliseconds": 4.2,
            }
        }
    )

    task: str
    predictions: list[Prediction]
    bundle: str
    """sha256 of the adapter that answered."""
    milliseconds: float
    """From the image's bytes to the answer, in the service."""


class TaskInfo(BaseModel):
    """A task that is served."""

    task: str
    classes: list[str]
    backbone: str
    method: str
    bundle: str


class Tasks(BaseModel):
    """All tasks that are served."""

    tasks: list[TaskInfo]


class Fault(BaseModel):
    """What was wrong with a request."""

    detail: str
