"""A typed client of the service: `from mosa_deploy.client import Client`."""

from mosa_deploy.client.client import AsyncClient, Client
from mosa_deploy.client.embeddings import Embedding
from mosa_deploy.client.requests import Picture
from mosa_deploy.client.schema import Answer, Failure, Prediction, Task, TaskVersion

__all__ = ["Answer", "AsyncClient", "Client", "Embedding", "Failure", "Picture", "Prediction", "Task", "TaskVersion"]
