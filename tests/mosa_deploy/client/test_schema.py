import json

import pytest
from pydantic import ValidationError

from mosa_deploy.client.embeddings import EMBEDDING, Embeddings
from mosa_deploy.client.schema import ANSWER, FAULT, TASK, Answer, Answers, Failure, Fault, Model, Task, Tasks

FAILURE = {"task": "digits", "status": 404, **FAULT}


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        (Answer, ANSWER),
        (Failure, FAILURE),
        (Answers, {"results": [ANSWER, FAILURE]}),
        (Task, TASK),
        (Tasks, {"tasks": [TASK]}),
        (Fault, FAULT),
        (Embeddings, {"results": [EMBEDDING, FAILURE]}),
    ],
)
def test_the_client_reads_exactly_what_the_service_sends(model: type[Model], sent: dict[str, object]) -> None:
    text = json.dumps(sent, separators=(",", ":"))
    assert model.model_validate_json(text).model_dump_json(exclude_unset=True) == text


def test_a_result_is_an_answer_or_a_failure() -> None:
    results = Answers.model_validate({"results": [ANSWER, FAILURE]}).results
    assert [type(each) for each in results] == [Answer, Failure]


def test_the_label_of_an_answer_is_its_likeliest_class() -> None:
    assert Answer.model_validate(ANSWER).label == "7"


def test_an_answer_cannot_be_changed() -> None:
    answer = Answer.model_validate(ANSWER)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(answer, "task", "birds")  # noqa: B010 - mypy refuses the plain assignment


def test_answers_can_be_kept_in_a_set() -> None:
    assert len({Answer.model_validate(ANSWER), Answer.model_validate(ANSWER)}) == 1


def test_a_field_of_a_newer_service_is_ignored() -> None:
    assert Task.model_validate({**TASK, "colour": "green"}) == Task.model_validate(TASK)
