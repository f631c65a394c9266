"""Keeps `python -m serving.ask` working; the code is `mosa_deploy.client.ask`."""

from mosa_deploy.client.ask import main

if __name__ == "__main__":
    main()
