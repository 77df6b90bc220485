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

FULL: Literal["full"] = "full"
MAX_CLUSTERS = 4096


@dataclass(frozen=True)
class Recipe:
    """Settings of a calibration.

    ``clusters`` is K of k-scaling for tokens: a number, or "full" for one step per token. ``tables`` is K for the
    channels of tensors that pass through a table (u, gate, delta). Tensors outside ``token_wise`` and ``channel_wise``
    have one step. Where the state is among ``token_wise`` it has a step per token whatever K is, as published.
    ``power_of_two`` names the tensors whose clusters' steps are powers of two apart, "conv.output" being the index of
    u's tables. ``bias_correction`` takes all linear layers, or those that have a bias.
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
    asymmetric_tables: bool = False
    bias_correction: Literal["none", "biased", "all"] = "none"
    state: State = "int8"


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "default",
            "the most accurate: a step per token and channel wherever it costs nothing, clipping by output error, "
            "an fp32 hidden state; with an int8 one log-rank-1 reparameterization",
            token_wise=frozenset(TOKEN_TENSORS),
            channel_wise=frozenset(CHANNEL_TENSORS) - {"gate"},
            clusters=FULL,
            tables=3,
            weight_per_channel=True,
            reparameterization="log_rank1",
            search="output_error",
            smoothing=True,
            asymmetric_tables=True,
            bias_correction="all",
            state="fp32",
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
    "bias_correction": {"bias_correction": "none"},
}


def get_recipe(
    name: str, clusters: str | int | None = None, state: str | None = None, without: Sequence[str] = ()
) -> Recipe:
    """Return a recipe by name, with K and the state's type replaced where given, and without the named steps.

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
    for step in without:
        if step not in STEPS:
            raise CalibrationError(f"unknown step {step!r}; the steps of a recipe are {', '.join(STEPS)}")
        shorter = dataclasses.replace(recipe, **STEPS[step])
        if shorter == recipe or (step == "reparameterization" and recipe.state == "fp32"):
            raise CalibrationError(f"the recipe {recipe.name} has no step {step} to leave out")
        recipe = dataclasses.replace(
            shorter, name=recipe.name + (", " if " without " in recipe.name else " without ") + step
        )
    return recipe


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
