"""Recipes: which means of quantization a calibration uses. The one place for their settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pyvimtrt.errors import CalibrationError

# Roles of the tensors that can have one step per token, and of those that can have one step per channel, as
# `pyvimtrt.families` assigns them.
TOKEN_TENSORS = ("norm.output", "scan.parameters", "scan.output", "state", "head.input")
CHANNEL_TENSORS = (
    "norm.output",
    "conv.input",
    "u",
    "gate",
    "delta",
    "scan.parameters",
    "scan.output",
    "state",
    "head.input",
)

State = Literal["int8", "fp32"]
STATES: tuple[State, ...] = get_args(State)
WeightBits = Literal[8, 4]
WEIGHT_BITS: tuple[WeightBits, ...] = get_args(WeightBits)  # of the layers' linear layers; all other weights have 8

FULL: Literal["full"] = "full"
MAX_CLUSTERS = 4096


@dataclass(frozen=True)
class Recipe:
    """Settings of a calibration.

    ``clusters`` is K of k-scaling for tokens: a number, or "full" for one step per token. ``tables`` is K for the
    channels of tensors that pass through a table (u, gate, delta). Tensors outside ``token_wise`` and ``channel_wise``
    have one step. Where the state is among ``token_wise`` it has a step per token whatever K is, as published.
    ``power_of_two`` names the tensors whose clusters' steps are powers of two apart, "conv.output" being the index of
    u's tables. ``search`` is of tables and of the int8 state, "output_error", or of all scales, "cosine".
    ``kept_tokens``: a layer that reads some of the tokens alone is fitted to these. ``bias_correction`` takes all
    linear layers, or those that have a bias. ``weight_groups`` and ``error_compensation`` are of weights of four bits:
    a factor for each group of inputs, and rounding in which each weight makes up for the errors of those before it.
    """

    name: str
    description: str
    token_wise: frozenset[str] = frozenset()
    channel_wise: frozenset[str] = frozenset()
    clusters: int | Literal["full"] = 4
    tables: int = 4
    power_of_two: frozenset[str] = frozenset()
    weight_per_channel: bool = False
    reparameterization: Literal["none", "published", "log_rank1"] = "none"
    search: Literal["none", "cosine", "output_error"] = "none"
    smoothing: bool = False
    kept_tokens: bool = False
    asymmetric_tables: bool = False
    bias_correction: Literal["none", "biased", "all"] = "none"
    state: State = "int8"
    weight_bits: WeightBits = 8
    weight_groups: bool = True
    error_compensation: bool = False


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "default",
            "the most accurate: a step per token and channel wherever it costs nothing, hardly any clipping, "
            "an fp32 hidden state; with an int8 one log-rank-1 reparameterization",
            token_wise=frozenset(TOKEN_TENSORS),
            channel_wise=frozenset(CHANNEL_TENSORS) - {"gate"},
            clusters=FULL,
            tables=3,
            weight_per_channel=True,
            reparameterization="log_rank1",
            search="output_error",
            smoothing=True,
            kept_tokens=True,
            asymmetric_tables=True,
            bias_correction="all",
            state="fp32",
            error_compensation=True,
        ),
        Recipe(
            "paper",
            "as published: k-scaling with K = 4, powers of two where the paper has them, published "
            "reparameterization, cosine search",
            token_wise=frozenset({"scan.output", "state"}),
            channel_wise=frozenset({"u", "gate", "delta"}),
            clusters=4,
            tables=4,
            power_of_two=frozenset({"scan.output", "conv.output"}),
            reparameterization="published",
            search="cosine",
            bias_correction="biased",
        ),
        Recipe("naive", "the baseline: one min-max step per tensor, no reparameterization", clusters=1, tables=1),
    )
}


# The steps of a recipe that can be switched off by name, and what takes their place.
STEPS: dict[str, dict[str, Any]] = {
    "token_steps": {"token_wise": frozenset()},  # one step for all tokens of a tensor
    "channel_steps": {"channel_wise": frozenset()},
    "power_of_two": {"power_of_two": frozenset()},
    "weight_channels": {"weight_per_channel": False},
    "tables": {"tables": 1},  # one table for all channels of a tensor
    "asymmetric_tables": {"asymmetric_tables": False},
    "reparameterization": {"reparameterization": "none"},
    "search": {"search": "none"},  # min-max steps
    "smoothing": {"smoothing": False},
    "kept_tokens": {"kept_tokens": False},  # a layer that reads some tokens is fitted to all
    "bias_correction": {"bias_correction": "none"},
    "weight_groups": {"weight_groups": False},  # one scale for all inputs of an output
    "error_compensation": {"error_compensation": False},  # each weight to the nearest
}
_NEEDS: dict[str, tuple[str, Any]] = {  # steps that a recipe has with this setting alone
    "reparameterization": ("state", "int8"),
    "weight_groups": ("weight_bits", 4),
    "error_compensation": ("weight_bits", 4),
}


def get_recipe(
    name: str,
    clusters: str | int | None = None,
    state: str | None = None,
    without: Sequence[str] = (),
    weight_bits: int | None = None,
) -> Recipe:
    """Return a recipe by name, with K, the state's type and the weights' bits replaced where given, and without the
    named steps.

    Raises CalibrationError for unknown values, and for a step that the recipe does not have: an ablation of nothing
    would look like a finding.
    """
    if name not in RECIPES:
        raise CalibrationError(f"unknown recipe {name!r}; the recipes are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    if clusters is not None:
        recipe = dataclasses.replace(recipe, clusters=parse_clusters(clusters))
    if state is not None:
        if state not in STATES:
            raise CalibrationError(f"the state must be {' or '.join(STATES)}, got {state!r}")
        recipe = dataclasses.replace(recipe, state=state)
    if weight_bits is not None:
        if weight_bits not in WEIGHT_BITS:
            raise CalibrationError(f"weights have {' or '.join(map(str, WEIGHT_BITS))} bits, got {weight_bits!r}")
        recipe = dataclasses.replace(recipe, weight_bits=weight_bits)
    for step in without:
        if step not in STEPS:
            raise CalibrationError(f"unknown step {step!r}; the steps of a recipe are {', '.join(STEPS)}")
        shorter = dataclasses.replace(recipe, **STEPS[step])
        if not has_step(recipe, step):
            raise CalibrationError(f"the recipe {recipe.name} has no step {step} to leave out")
        recipe = dataclasses.replace(
            shorter, name=recipe.name + (", " if " without " in recipe.name else " without ") + step
        )
    return recipe


def has_step(recipe: Recipe, step: str) -> bool:
    """Return whether a recipe has a step that can be left out."""
    field, value = _NEEDS.get(step, ("name", recipe.name))
    return getattr(recipe, field) == value and any(getattr(recipe, f) != v for f, v in STEPS[step].items())


def parse_clusters(text: str | int) -> int | Literal["full"]:
    """Return K from a command line: a number of at least 1, or "full"."""
    if text == FULL:
        return FULL
    try:
        clusters = int(text)
    except ValueError:
        clusters = 0
    if not 1 <= clusters <= MAX_CLUSTERS:
        raise CalibrationError(f"k must be a number from 1 to {MAX_CLUSTERS}, or full; got {text!r}")
    return clusters


def parse_without(text: str | None) -> tuple[str, ...]:
    """Return the names of steps from a command line or a build file: separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()
