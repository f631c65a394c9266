"""A typed client of the service: `from mosa_deploy.client import Client`."""

from mosa_deploy.client.client import Answer, AsyncClient, Client, Failure, Picture, Prediction, Task

__all__ = ["Answer", "AsyncClient", "Client", "Failure", "Picture", "Prediction", "Task"]
