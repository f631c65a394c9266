"""One HTTP service that hosts one adapter a task and switches on each request."""
