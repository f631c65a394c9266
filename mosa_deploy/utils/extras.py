"""Packages that only an extra installs."""

from importlib.util import find_spec

from mosa_deploy.errors import ProviderError


def require_package(name: str, extra: str) -> None:
    """Raises ProviderError, with the way out, if a package of an extra is missing."""
    if find_spec(name) is None:
        raise ProviderError(f"{name} is not installed, and this needs it: pip install 'mosa-deploy[{extra}]'")
