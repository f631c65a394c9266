"""Keeps `python -m mosa_deploy.archive` working; the code is `mosa_deploy.bundles.archive`."""

from mosa_deploy.bundles.archive import main

if __name__ == "__main__":
    main()
