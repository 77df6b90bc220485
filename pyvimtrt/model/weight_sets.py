"""The sets of weights in a checkpoint, however its trainer wraps and names them, and the choice of one by its name.

Trainers put the state dict under a key, or two (``{"state_dict": ..}``, ``{"state": {"model": ..}}``), write names with
something before them (``module.``, ``model.``), and keep a moving average beside it. A set is all tensors of one
dictionary whose names have the same beginning before the model's own names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyvimtrt.errors import brief
from pyvimtrt.families.registry import FAMILIES
from pyvimtrt.model.pickle_reader import Pairs, Record, as_tensor
from pyvimtrt.model.stored_tensor import StoredTensor

MAX_CONTAINERS = 20_000  # dictionaries and lists looked into
MAX_DEPTH = 8
MAX_TOP_KEYS = 40
MAX_PREFIXES = 16  # of one dictionary
# Parts of names that wrappers of PyTorch put anywhere: DataParallel and AveragedModel, torch.compile, FSDP, activation
# checkpoints.
WRAPPERS = (
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "_flat_param",
)
_ANY_WRAPPERS = rf"(?:(?:{'|'.join(WRAPPERS)})\.)*"
_ANCHORS = "|".join(rf"\.{_ANY_WRAPPERS}".join(family.anchor.split(".")) for family in FAMILIES.values())
_ANCHOR = re.compile(rf"^((?:.*?\.)?)(?:{_ANCHORS})$")
# What tools leave in a state dict that no result depends on: counters of profilers and of averages; losses and metrics
# of trainers.
_NEUTRAL = re.compile(
    r"^(?:.*\.)?(?:total_ops|total_params|n_averaged|num_updates|decay)$|^(?:criterion|loss\w*|(?:train|val|valid|test)_\w+|\w*metrics?)\."
)


@dataclass(frozen=True)
class WeightSet:
    """One set of weights in a file: where it lies, what was taken off its names, and its tensors by the names that are
    left.
    """

    keys: tuple[str, ...]  # of the dictionaries it lies in
    prefix: str  # taken off every name, with its dot
    tensors: Mapping[str, StoredTensor]
    wrappers: tuple[str, ...] = ()  # taken out of names elsewhere
    neutral: tuple[str, ...] = ()  # names left out that no result depends on
    clash: str = ""  # a name that two tensors have once wrappers are off

    @property
    def path(self) -> tuple[str, ...]:
        """Return the keys, and the parts of the prefix that are no wrapper's, for `name` and for the choice."""
        return (*self.keys, *(part for part in self.prefix.split(".") if part and part not in WRAPPERS))

    @property
    def name(self) -> str:
        """Return what --weights-key takes: keys with a slash between them; "." is the top."""
        return "/".join(self.path) or "."

    def full_name(self) -> str:
        """Return the name with every key and prefix, for two sets that `name` does not tell apart."""
        return "/".join((*self.keys, *filter(None, self.prefix.split(".")))) or "."


def find_sets(content: Any) -> list[WeightSet]:
    """Return all sets of weights that the content of a file holds, those nearest to the top first."""
    sets: list[WeightSet] = []
    for keys, tensors in _dictionaries(content):
        sets += split_names(keys, tensors)
    return sets


def split_names(keys: tuple[str, ...], tensors: Mapping[str, StoredTensor]) -> list[WeightSet]:
    """Return a dictionary's sets: one for each beginning that the patch embedding's name has, or one of all tensors."""
    prefixes = sorted({found.group(1) for name in tensors if (found := _ANCHOR.match(name))}, key=len)[
        :MAX_PREFIXES
    ] or [_common_prefix(tensors)]
    sets = []
    for prefix in prefixes:
        others = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
        mine = {
            name: tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix) and not (others and name.startswith(others))
        }
        sets.append(_clean(keys, prefix, mine))
    return sets


@dataclass
class _Cleaned:
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    wrappers: set[str] = field(default_factory=set)
    neutral: list[str] = field(default_factory=list)
    clash: str = ""


def _clean(keys: tuple[str, ...], prefix: str, tensors: Mapping[str, StoredTensor]) -> WeightSet:
    found = _Cleaned()
    for name, tensor in tensors.items():
        parts = name[len(prefix) :].split(".")
        kept = ".".join(part for part in parts if part not in WRAPPERS)
        found.wrappers |= {part for part in parts if part in WRAPPERS}
        if _NEUTRAL.match(kept):
            found.neutral.append(kept)
        elif kept in found.tensors:
            found.clash = kept
        else:
            found.tensors[kept] = tensor
    return WeightSet(keys, prefix, found.tensors, tuple(sorted(found.wrappers)), tuple(found.neutral), found.clash)


def _common_prefix(names: Mapping[str, Any]) -> str:
    """Return the wrappers that all names begin with."""
    prefix = ""
    while names:
        part = next(iter(names))[len(prefix) :].partition(".")[0]
        if part not in WRAPPERS or not all(name.startswith(f"{prefix}{part}.") for name in names):
            break
        prefix += part + "."
    return prefix


def _dictionaries(content: Any) -> Iterator[tuple[tuple[str, ...], dict[str, StoredTensor]]]:
    """Yield every dictionary that holds tensors under names, with the keys it lies under, level by level."""
    level: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen = 0
    for _ in range(MAX_DEPTH):
        below: list[tuple[tuple[str, ...], Any]] = []
        for keys, value in level:
            seen += 1
            if seen > MAX_CONTAINERS:
                return
            pairs = _pairs(value)
            tensors = {
                key: tensor for key, item in pairs if isinstance(key, str) and (tensor := as_tensor(item)) is not None
            }
            if tensors or (type(value) is Pairs and not keys and not pairs):
                yield keys, tensors
            below += [
                ((*keys, str(key)[:80]), item)
                for key, item in pairs
                if isinstance(item, Pairs | list | tuple) and as_tensor(item) is None
            ]
            if len(below) > MAX_CONTAINERS:
                below = below[:MAX_CONTAINERS]
        level = below


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Pairs):
        return value.items
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


def choose_by_key(sets: list[WeightSet], key: str) -> list[WeightSet]:
    """Return the sets that a --weights-key names: its whole name or path, else its first or last parts."""
    parts = tuple(part for part in re.split(r"[/.]", key) if part and part not in WRAPPERS)
    ways: list[Callable[[WeightSet], bool]] = [
        lambda s: key == s.full_name(),
        lambda s: key == s.name,
        lambda s: bool(parts) and _parts(s) == parts,
        lambda s: bool(parts) and parts in (_parts(s)[: len(parts)], _parts(s)[-len(parts) :]),
    ]
    return next((found for way in ways if (found := [s for s in sets if way(s)])), [])


def _parts(found: WeightSet) -> tuple[str, ...]:
    return tuple(part for part in re.split(r"[/.]", found.name) if part and part not in WRAPPERS)


def pickled_class(content: Any) -> str | None:
    """Return the class of a whole model pickled as an object, where the content is one or holds one near its top."""
    values = [content, *(item for _, item in _pairs(content)[:1000])]
    for value in values:
        if (
            isinstance(value, Record)
            and isinstance(value.state, Pairs)
            and {"_parameters", "_modules"} & {key for key, _ in value.state.items if isinstance(key, str)}
        ):
            return str(value.cls)
    return None


def top_keys(content: Any) -> list[str]:
    """Return the first keys of a dictionary."""
    return [brief(key, 80) for key, _ in _pairs(content)[:MAX_TOP_KEYS]]
