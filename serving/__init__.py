"""One HTTP service that hosts one adapter per task and switches on each request."""
