"""From what a user names, a file or a folder, to its tensors, each by the path of names that leads to it.

    {"state_dict": {"model.head.weight": w}, "epoch": 3}    ->    {"state_dict.model.head.weight": w}

Nothing is unpickled with its own classes: a foreign class in a checkpoint becomes an inert placeholder.
"""

import builtins
import re
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from mosa_deploy.backbones.file_kinds import READ, TRUST, kind_of, mend_module
from mosa_deploy.errors import BackboneError
from mosa_deploy.utils.text import read_json

Tensors = dict[str, Tensor]

NAMES = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
    "open_clip_model.safetensors", "open_clip_pytorch_model.bin",
)  # fmt: skip
"""The files of weights in a folder of transformers, timm or open_clip, in the order in which one is taken."""

INDEX = ".index.json"
"""How the name of the file ends that lists a model's files."""

SUFFIXES = (".safetensors", ".npz", ".pth", ".pt", ".bin", ".ckpt", ".tar")

NOT_WEIGHTS = re.compile(
    r"opt|optim\w*|\w*optimizer\w*|\w*scheduler\w*|\w*scaler|amp|callbacks|loops|hyper_parameters|hparams|args|cfg"
    r"|config|rng\w*|\w*rng_state\w*"
)
"""Entries of a checkpoint that lie beside the weights."""

WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of names that torch's own wrappers add anywhere in a model."""

NEVER = ("os", "posix", "nt", "sys", "subprocess", "shutil", "importlib", "runpy", "pty")
"""Modules that only a checkpoint which is to run code names; of `builtins`, the functions."""

TRIES = 100
"""The largest number of foreign classes in a checkpoint in torch's format before 1.6, each found by a try."""


class Placeholder:
    """Stands for an object of a class that is not known here; keeps what it is given, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        """Takes whatever the pickle gives to its own class."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Keeps the object's attributes."""
        if isinstance(state, dict):
            self.__dict__.update({str(name): value for name, value in state.items()})


class _Filled:
    """In the place of a foreign kind of dictionary."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """An ordinary one."""
        return OrderedDict()


class _Listed:
    """In the place of a foreign kind of list."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """An ordinary one."""
        return []


def locate(path: Path, option: str) -> Path:
    """The file of weights that a path means: the path itself, or the one in its folder.

    Raises:
        BackboneError: there is no such file, or the folder holds none or several.
    """
    if not path.exists():
        raise BackboneError(f"{option} {path}: no such file; give a file or a folder on this machine")
    if not path.is_dir():
        # One of several files of a model means all of them.
        index = path.parent / (re.sub(r"-\d{5}-of-\d{5}(?=\.\w+$)", "", path.name) + INDEX)
        return index if index.is_file() and index.name != path.name + INDEX else path
    if (path / "adapter_config.json").is_file():
        raise BackboneError(f"{option} {path} is an adapter of PEFT, not a model: give it to mosa convert --from peft")
    known = next((path / name for name in NAMES if (path / name).is_file()), None)
    found = [known] if known else sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:5]) or "none"
        raise BackboneError(f"{option} {path} is a folder with these files of weights: {names}; give one file")
    return found[0]


def read_tensors(path: Path, option: str) -> Tensors:
    """All tensors in a file or a folder, without what optimisers and settings hold.

    Raises:
        BackboneError: it is missing or damaged, or holds no weights that can be read without running code.
    """
    file = locate(path, option)
    content = _read_file(file, option)
    if isinstance(content, Tensor):
        raise BackboneError(f"{option} {file} holds one tensor without a name: save a state dict")
    tensors = {WRAPPERS.sub("", name): value for name, value in _flat(content, "")}
    if not tensors:
        _refuse_without_tensors(content, file, option)
    return tensors


def _read_file(file: Path, option: str) -> Any:
    """The content of one file."""
    kind = kind_of(file, option)
    try:
        match kind:
            case "safetensors":
                return load_file(file)
            case "npz":
                with np.load(file, allow_pickle=False) as arrays:
                    return {name: arrays[name] for name in arrays.files}
            case "json":
                return _read_shards(file, option)
            case "torch":
                return read_torch(file, option)
    except BackboneError:
        raise
    except Exception as error:  # A damaged file raises KeyError, EOFError, AttributeError and more.
        # Only its first sentence: torch's next ones advise to unpickle.
        reason = str(error).partition(". ")[0].partition("\n")[0]
        said = f"{type(error).__name__} {reason}".rstrip()
        raise BackboneError(f"{option} {file} cannot be read: {said}; fetch it again, or {READ}") from error


def _read_shards(file: Path, option: str) -> Tensors:
    """The tensors of a model in several files, which an `*.index.json` names."""
    try:
        index = read_json(file)
        shards = sorted(set(index["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BackboneError(f"{option} {file} is no index of a model in several files: {READ}") from None
    missing = [name for name in shards if not (file.parent / Path(name).name).is_file()]
    if missing:
        raise BackboneError(f"{option} {file} names files that are not beside it: {', '.join(missing)}; fetch them")
    parts = [_read_file(file.parent / Path(name).name, option) for name in shards]
    return {name: value for part in parts for name, value in part.items()}


def read_torch(file: Path, option: str) -> Any:
    """What `torch.save` wrote, with a placeholder for every object of a foreign class."""
    known: dict[str, type] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(TRIES):
            placeholders = [(kind, name) for name, kind in known.items()]
            with torch.serialization.safe_globals([*_numpy_globals(), *placeholders]):
                try:
                    # By a handle: with a path, torch goes by the suffix.
                    with file.open("rb") as handle:
                        return torch.load(handle, map_location="cpu", weights_only=True)
                except Exception as error:
                    more = _placeholders(file, error, known, option)
                    if not more:
                        raise
                    known |= more
    raise _code(file, sorted(known)[0], option)


def _placeholders(file: Path, error: Exception, known: Mapping[str, type], option: str) -> dict[str, type]:
    """Placeholders for the classes for which torch refused to read a file.

    Raises:
        BackboneError: a class is one that only runs code, or the file is a whole module.
    """
    if "Only persistent_load of storage" in str(error):
        raise _module(file, "", None, option) from error
    filled = re.search(r"Can only (SETITEM|append|extend).* got <class '.*?(\w+)'>", str(error))
    if filled:
        kind = _Filled if filled[1] == "SETITEM" else _Listed
        return {name: kind for name in known if name.endswith(f".{filled[2]}") and known[name] is not kind}
    foreign = _foreign_classes(file, error) - known.keys()
    refused = sorted(name for name in foreign if _runs_code(name))
    if refused:
        raise _code(file, refused[0], option) from error
    return {name: type(name.rpartition(".")[2], (Placeholder,), {}) for name in foreign}


def _runs_code(name: str) -> bool:
    module, _, function = name.rpartition(".")
    return module in NEVER or (module == "builtins" and not isinstance(getattr(builtins, function, None), type))


def _foreign_classes(file: Path, error: Exception) -> set[str]:
    """The names of the classes for which torch refused to read a file."""
    try:
        return {_full(name) for name in torch.serialization.get_unsafe_globals_in_checkpoint(str(file))}
    except Exception:  # A file in the older format, or a damaged one.
        found = re.search(r"GLOBAL (\S+)", str(error))
        return {_full(found[1])} if found else set()


def _full(name: str) -> str:
    """A name in a message of torch, which leaves out `builtins`."""
    return name if "." in name else f"builtins.{name}"


def _code(file: Path, name: str, option: str) -> BackboneError:
    command = (
        f"import torch; d = torch.load('{file.as_posix()}', map_location='cpu', weights_only=False);"
        " torch.save({k: v for k, v in d.items() if isinstance(v, dict) or hasattr(v, 'shape')},"
        f" '{file.stem}.state.pth')"
    )
    return BackboneError(
        f"{option} {file} holds more than tensors ({name}), which may run code when it is read:"
        f' {TRUST}python -c "{command}"'
    )


def _module(file: Path, kind: str, key: str | None, option: str) -> BackboneError:
    return BackboneError(f"{option} {file} holds a whole module{kind}, which is code: {mend_module(file, key)}")


def _numpy_globals() -> list[Any]:
    """What torch needs to read numpy's arrays and scalars; none of them runs anything."""
    from numpy._core.multiarray import _reconstruct, scalar

    kinds = [
        type(np.dtype(code))
        for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "U", "S", "O")
    ]
    functions = [(function, f"numpy.{core}.multiarray.{function.__name__}")
                 for function in (_reconstruct, scalar) for core in ("_core", "core")]  # fmt: skip
    return [np.ndarray, np.dtype, *kinds, *functions]


def _flat(content: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dictionaries and lists."""
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiub":
        content = torch.from_numpy(np.array(content, order="C"))
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content.detach()
    elif isinstance(content, Mapping):
        for key, value in content.items():
            if not (isinstance(value, Mapping | list) and NOT_WEIGHTS.fullmatch(str(key))):
                yield from _flat(value, f"{prefix}{key}.")
    elif isinstance(content, list | tuple):
        for i, value in enumerate(content):
            yield from _flat(value, f"{prefix}{i}.")


def _refuse_without_tensors(content: Any, file: Path, option: str) -> None:
    """Raises BackboneError: a pickled module with the command that mends it, anything else by what it holds."""
    entries = content if isinstance(content, Mapping) else {None: content}
    for key, value in entries.items():
        if isinstance(value, Placeholder) and ("_modules" in vars(value) or "model" in vars(value)):
            raise _module(file, f" ({type(value).__name__})", key, option)
    held = ", ".join(map(str, entries)) if isinstance(content, Mapping) and content else type(content).__name__
    raise BackboneError(f"{option} {file} holds no tensors, but {held}: {READ}")
