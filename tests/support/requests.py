"""The image that the cases of requests send, and how their answers are read."""

from base64 import b64encode
from typing import Any

from tests.support.tasks import picture

SEED = 3
PHOTO = picture(SEED)
JPEG = picture(SEED, kind="jpeg")
RIGHT = f"class-{SEED}"
"""What `birds` says of both."""
BASE64 = b64encode(PHOTO).decode()
FORM = "curl -F image=@photo.jpg -F task=digits http://testserver/classify"
JSON = """curl -H 'Content-Type: application/json' -d '{"image": "<base64>", "task": "digits"}' http://testserver/classify"""
URLENCODED = {"content-type": "application/x-www-form-urlencoded"}


def label(response: Any) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["predictions"][0]["label"])


def refusal(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["detail"]
