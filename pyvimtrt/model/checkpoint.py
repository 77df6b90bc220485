"""Checkpoints to and from files: .safetensors and torch.save's as trainers write them, none of whose code runs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyvimtrt.errors import ModelError, brief
from pyvimtrt.families import ModelConfig, family_of, model_name, weight_shapes
from pyvimtrt.files import atomic_output
from pyvimtrt.model.foreign_file import describe_foreign
from pyvimtrt.model.pickle_reader import Pairs
from pyvimtrt.model.safetensors_file import read_safetensors
from pyvimtrt.model.stored_tensor import StoredTensor
from pyvimtrt.model.torch_file import ZIP_MAGIC, check_inflation, read_torch_file
from pyvimtrt.model.weight_sets import WeightSet, choose_by_key, find_sets, pickled_class
from pyvimtrt.model.weights import Weights, check_weights, misfit

KEY_OPTION = "--weights-key"


@dataclass(frozen=True)
class WeightsFile:
    """A checkpoint, and which of its sets of weights to take where several fit: the model's, or its moving average."""

    path: Path
    key: str | None = None

    def __str__(self) -> str:
        return str(self.path)


class CheckpointNote(UserWarning):
    """What was taken off, chosen or left out when weights were read; the command line prints it."""


def as_weights_file(weights: str | Path | WeightsFile) -> WeightsFile:
    """Return a path as a file without a chosen set."""
    return weights if isinstance(weights, WeightsFile) else WeightsFile(Path(weights))


def load_weights(config: ModelConfig, source: str | Path | WeightsFile) -> Weights:
    """Return the checked fp32 weights of a model from a checkpoint: the one set that fits, or that its key names.

    What was taken off its names or left out is said as a CheckpointNote. Raises ModelError where the file cannot be
    read without running code, no set fits (keys missing, extra or misshapen, values not finite), or several different
    ones do.
    """
    file = as_weights_file(source)
    chosen, sets = _choose(config, read_sets(file.path), file)
    try:
        weights = _read(chosen, file.path)
    except (OSError, ValueError, MemoryError) as error:
        raise ModelError(
            f"cannot read weights from {file.path}: {brief(error) or 'out of memory'}; get the file again"
        ) from error
    check_weights(config, weights, _place(chosen, file.path))
    note = _note(chosen, sets)
    if note:
        warnings.warn(f"{file.path}: {note}", CheckpointNote, stacklevel=2)
    return weights


def read_sets(path: Path) -> list[WeightSet]:
    """Return all sets of weights in a checkpoint, described and not read. Raises ModelError where there are none, or
    reading them takes code.
    """
    content = read_content(path)
    sets = find_sets(content)
    if not sets:
        model = pickled_class(content)
        if model is not None:
            raise ModelError(
                f"{path} holds no state dict but a whole object of the class {brief(model, 80)}, which takes code to "
                "load; save model.state_dict()"
            )
        raise ModelError(f"{path} holds no state dict: no tensors under the names of weights; save model.state_dict()")
    return sets


def read_content(path: Path) -> Any:
    """Return what a checkpoint of any kind holds, as `pickle_reader` does. Raises ModelError, with the cure."""
    try:
        if not path.is_file():
            raise ModelError(_absent(path))
        foreign = describe_foreign(path)
        if foreign is not None:
            raise ModelError(f"cannot read weights from {path}: it {foreign}")
        with path.open("rb") as file:
            start = file.read(9)
    except (OSError, ValueError) as error:  # the second: a name that no file can have
        raise ModelError(f"cannot read weights from {path}: {getattr(error, 'strerror', None) or error}") from error
    if start[8:9] == b"{" or (path.suffix == ".safetensors" and not start.startswith((ZIP_MAGIC, b"\x80"))):
        return Pairs(list(read_safetensors(path).items()))
    return read_torch_file(path)


def load_model(config: ModelConfig, weights: Weights) -> Backbone:
    """Return the PyTorch model in evaluation mode with these weights."""
    import torch

    model = family_of(config).new_model(config)
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in weights.items()})
    return model.eval()


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write a model's weights as .safetensors, whole or not at all."""
    from safetensors.torch import save

    data = save({name: value.detach().contiguous().float() for name, value in model.state_dict().items()})
    with atomic_output(path) as temporary:
        temporary.write_bytes(data)


def _choose(config: ModelConfig, sets: list[WeightSet], file: WeightsFile) -> tuple[WeightSet, list[WeightSet]]:
    """Return the set to take, and all that fit."""
    candidates = sets
    if file.key is not None:
        candidates = choose_by_key(sets, file.key)
        if not candidates:
            raise ModelError(
                f"{file.path} holds no weights under {brief(file.key, 80)!r}; {KEY_OPTION} takes one of: {_names(sets)}"
            )
    problems = [_problem(config, found) for found in candidates]
    fitting = [found for found, problem in zip(candidates, problems, strict=True) if not problem]
    if not fitting:
        nearest = min(range(len(candidates)), key=lambda i: _distance(config, candidates[i]))
        raise ModelError(f"the weights in {_place(candidates[nearest], file.path)} {problems[nearest]}")
    first = fitting[0]
    different = [first, *(other for other in fitting[1:] if not _equal(first, other, file.path))]
    if len(different) > 1:
        names = [brief(found.name, 80) for found in different]
        if len(set(names)) < len(names):
            names = [brief(found.full_name(), 80) for found in different]
        raise ModelError(
            f"{file.path} holds {len(different)} different sets of weights that fit the model: {', '.join(names)}; "
            f"choose one with {' or '.join(f'{KEY_OPTION} {name}' for name in names)}"
        )
    check_inflation(sum(4 * tensor.elements for tensor in first.tensors.values()), file.path)
    return first, fitting


def _problem(config: ModelConfig, found: WeightSet) -> str:
    """Return why a set of weights cannot be the model's, as the end of a sentence, or nothing."""
    if found.clash:
        return (
            f"hold two tensors of the name {brief(found.clash, 80)}, with and without a wrapper's part; "
            "save one state dict"
        )
    for name in sorted(weight_shapes(config).keys() & found.tensors.keys()):
        if found.tensors[name].kind:  # before the shapes, which such tensors need not say
            return f"cannot be used: {name} {found.tensors[name].problem()}"
    problem = misfit(config, {name: tensor.shape for name, tensor in found.tensors.items()})
    if problem:
        return f"do not fit the model {model_name(config)}: {problem}"
    for name, tensor in found.tensors.items():
        problem = tensor.problem() or ""
        if problem:
            return f"cannot be used: {name} {problem}"
    return ""


def _distance(config: ModelConfig, found: WeightSet) -> int:
    expected = weight_shapes(config)
    wrong = sum(found.tensors[name].shape != shape for name, shape in expected.items() if name in found.tensors)
    return len(expected.keys() ^ found.tensors.keys()) + wrong


def _equal(one: WeightSet, other: WeightSet, path: Path) -> bool:
    """Return whether two sets hold the same values, as where a file has one set under two names."""
    if all(tensor.same_place(other.tensors[name]) for name, tensor in one.tensors.items()):
        return True
    check_inflation(sum(8 * tensor.elements for tensor in one.tensors.values()), path)
    try:
        return all(np.array_equal(tensor.read(), other.tensors[name].read()) for name, tensor in one.tensors.items())
    except (OSError, ValueError, MemoryError) as error:
        raise ModelError(
            f"cannot read weights from {path}: {brief(error) or 'out of memory'}; get the file again"
        ) from error


def _read(found: WeightSet, path: Path) -> Weights:
    return {name: tensor.read() for name, tensor in found.tensors.items()}


def _place(found: WeightSet, path: Path) -> str:
    return str(path) if found.name == "." else f"{path} under {brief(found.name, 80)}"


def _names(sets: list[WeightSet]) -> str:
    names = list(dict.fromkeys(found.name for found in sets))
    return ", ".join(brief(name, 80) for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _note(chosen: WeightSet, fitting: list[WeightSet]) -> str:
    """Return what was chosen, taken off and left out; empty for a bare state dict under the model's own names."""
    parts = []
    if chosen.keys:
        parts.append(f"weights taken from {brief('/'.join(chosen.keys), 80)}")
    off = [*filter(None, [chosen.prefix]), *(f"{part}." for part in chosen.wrappers)]
    if off:
        parts.append(f"{' and '.join(repr(brief(text, 80)) for text in off)} taken off their names")
    if chosen.neutral:
        more = f" and {len(chosen.neutral) - 1} more" if len(chosen.neutral) > 1 else ""
        parts.append(f"{brief(chosen.neutral[0], 80)}{more} left out")
    if len(fitting) > 1:
        parts.append(f"{_names([found for found in fitting if found is not chosen])} holds the same")
    return "; ".join(parts)


def _absent(path: Path) -> str:
    """Return why there is no file, with the cure."""
    if path.is_dir():
        if (path / ".metadata").exists():
            return (
                f"no weights at {path}: it is a folder of torch.distributed.checkpoint; make one file of it with "
                f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pth"
            )
        names = sorted(
            entry.name for entry in path.iterdir() if entry.suffix in (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
        )[:3]
        return f"no weights at {path}: it is a folder; give a file in it" + (
            f", such as {', '.join(names)}" if names else ""
        )
    if path.is_symlink():
        return f"no weights at {path}: it is a link to {path.readlink()}, which is not there; get the file again"
    if path.exists():
        return f"no weights at {path}: it is no regular file; give the path of a .safetensors or .pth file"
    return f"no weights at {path}; give the path of a .safetensors or .pth file"


from typing import TYPE_CHECKING  # noqa: E402

if TYPE_CHECKING:
    import torch

    from pyvimtrt.families.backbone import Backbone

__all__ = [
    "CheckpointNote",
    "StoredTensor",
    "WeightsFile",
    "as_weights_file",
    "load_model",
    "load_weights",
    "read_sets",
    "save_weights",
]
