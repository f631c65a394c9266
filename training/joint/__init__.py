"""Several tasks tuned at once, with one adapter and a head for each: `mosa tune --joint tasks.toml`."""
