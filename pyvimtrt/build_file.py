"""What an engine is built from: a build file (``engines/*.toml``), command line options, or both."""

from __future__ import annotations

import contextlib
import re
import reprlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from pyvimtrt import api, defaults
from pyvimtrt.backends.registry import choose_to_build
from pyvimtrt.data.labels import read_labels
from pyvimtrt.errors import OutputError, UsageError
from pyvimtrt.families import MODELS, model_name, parse_model
from pyvimtrt.files import check_path, check_writable
from pyvimtrt.quantization.cache import CACHE_SUFFIXES
from pyvimtrt.zoo import DEMO_MODEL

ENGINES = Path("engines")
MAX_RECIPE_BYTES = 1 << 20
MAX_KEY_PARTS = 8  # of a dotted key: a recipe's have two, and tomllib's time grows with the square of their number
MAX_WHOLE = 2**63  # whole numbers of TOML lie below
# Texts and comments of TOML, which may hold what looks like a key. One without an end hides the rest, as the parser
# refuses it there.
_TEXT = re.compile(
    r'"""(?:[^\\]|\\.)*?(?:"""|\\?\Z)|' r"'''.*?(?:'''|\Z)|" r'"(?:[^"\\\n]|\\.)*"?|' r"'[^'\n]*'?|#[^\n]*",
    re.DOTALL,
)
_LONG_KEY = re.compile(rf"(?<![\w-])[\w-]+(?:[ \t]*\.[ \t]*[\w-]+){{{MAX_KEY_PARTS}}}")

Progress = Callable[[int, int], Callable[[int, int], None]]  # (layers, images) -> a calibration's progress
Warn = Callable[[Sequence[str]], None]


@dataclass(frozen=True)
class CalibrationPlan:
    """The table [calibrate] of a build file: how to make the cache where there is none yet."""

    images: Path
    count: int = defaults.CALIBRATION_IMAGES
    recipe: str = defaults.RECIPE
    k: str | None = None
    state: str | None = None
    weight_bits: int | None = None
    without: str | None = None
    seed: int = 0
    strict: bool = False


@dataclass(frozen=True)
class BuildFile:
    """Everything `api.build` takes; what is None comes from the model."""

    model: str = DEMO_MODEL
    weights: Path | None = None
    weights_key: str | None = None
    calibration: Path | None = None
    output: Path | None = None
    labels: tuple[str, ...] = ()
    backend: str = defaults.AUTO
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    batch: tuple[int, ...] | None = None
    workspace_mib: int | None = None
    timing_cache: Path | None = None
    separate_plugins: bool = False
    calibrate: CalibrationPlan | None = None
    sources: tuple[Path, ...] = ()  # files that were read for these settings, so that no output replaces them

    def plan_options(self) -> api.PlanOptions:
        """Return what is said of a TensorRT engine. Raises UsageError where it makes no sense."""
        chosen = {
            "batch": self.batch,
            "workspace_mib": self.workspace_mib,
            "timing_cache": self.timing_cache,
            "separate_plugins": self.separate_plugins,
        }
        given: dict[str, Any] = {key: value for key, value in chosen.items() if value is not None}
        return api.PlanOptions(**given)


def read_build_file(path: Path) -> BuildFile:
    """Read a build file; its relative paths start at its folder. Raises UsageError naming the key that is wrong."""
    check_path(path)
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            cure = "labels may lie in a file of their own"
            raise UsageError(f"the recipe {path} has more than {MAX_RECIPE_BYTES} bytes; {cure}")
        text = path.read_text(encoding="utf-8-sig")
        if _LONG_KEY.search(_TEXT.sub("text", text)):
            raise UsageError(f"{path} holds a key of more than {MAX_KEY_PARTS} dotted parts; the keys have one or two")
        content = tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise UsageError(f"{path} is not a TOML file: {error}") from error
    except RecursionError:
        cure = "the deepest of a recipe is [calibrate]"
        raise UsageError(f"{path} is no recipe: its lists or tables are nested too deep; {cure}") from None
    reader = _Reader(path)
    plan = content.pop("calibrate", None)
    settings = reader.settings(content, BuildFile, "")
    if plan is not None:
        if not isinstance(plan, dict) or "images" not in plan:
            raise UsageError(f"{path}: [calibrate] must be a table with the key images")
        settings["calibrate"] = CalibrationPlan(**reader.settings(plan, CalibrationPlan, "calibrate."))
    return BuildFile(**settings, sources=(path, *reader.sources))


def run_build_file(recipe: BuildFile, progress: Progress | None = None, warn: Warn | None = None) -> Path:
    """Build the engine of a recipe, calibrating first where the recipe says how and the cache does not exist yet.

    ``progress`` returns what is called after each step, ``warn`` takes sentences about images that were left out.
    """
    backend, options = choose_to_build(recipe.backend), recipe.plan_options()
    if recipe.model == defaults.AUTO:
        cache = recipe.calibration if recipe.calibrate is None or _exists(recipe.calibration) else None
        config = api.resolve_model(recipe.model, api.keyed_weights(recipe.weights, recipe.weights_key), cache)
        recipe = replace(recipe, model=model_name(config))
    output = recipe.output or default_output(recipe.model, backend.file.suffix)
    with _engines_folder(output):
        inputs = [*recipe.sources, recipe.weights, recipe.calibration]
        api.check_engine_output(output, backend, [*inputs, recipe.timing_cache])
        if recipe.timing_cache is not None:
            check_writable(recipe.timing_cache, inputs=[*inputs, output])
        plan = recipe.calibrate
        if plan is not None:
            if recipe.calibration is None:
                raise UsageError("a recipe with [calibrate] needs the key calibration, the cache file to make")
            if not recipe.calibration.exists():
                check_writable(recipe.calibration, CACHE_SUFFIXES, [*recipe.sources, recipe.weights, plan.images])
                _calibrate(recipe, plan, recipe.calibration, progress, warn)
        return api.build(
            recipe.model,
            api.keyed_weights(recipe.weights, recipe.weights_key),
            recipe.calibration,
            output,
            backend=backend.name,
            labels=recipe.labels,
            mean=recipe.mean,
            std=recipe.std,
            options=options,
        )


def _exists(path: Path | None) -> bool:
    return path is not None and path.exists()


def default_output(model: str, suffix: str) -> Path:
    """Return ``engines/NAME`` with a suffix for a registered model. Raises UsageError for a model without a name."""
    parse_model(model)
    if model not in MODELS:
        raise UsageError(f"the model {model} has no name to call the engine by; give the output file with -o")
    return ENGINES / (model + suffix)


def _calibrate(
    recipe: BuildFile, plan: CalibrationPlan, output: Path, progress: Progress | None, warn: Warn | None
) -> None:
    from pyvimtrt.data.datasets import sample_images
    from pyvimtrt.data.reader import ImageReader
    from pyvimtrt.quantization.recipes import parse_without

    reader = ImageReader(plan.strict)
    config = parse_model(recipe.model)
    images = sample_images(plan.images, config, plan.count, plan.seed, reader)
    if warn is not None:
        warn(reader.warnings())
    api.calibrate(
        recipe.model,
        api.keyed_weights(recipe.weights, recipe.weights_key),
        images,
        recipe=plan.recipe,
        k=plan.k,
        state=plan.state,
        weight_bits=plan.weight_bits,
        without=parse_without(plan.without),
        mean=recipe.mean,
        std=recipe.std,
        seed=plan.seed,
        output=output,
        progress=None if progress is None else progress(config.depth, len(images)),
    )


@contextlib.contextmanager
def _engines_folder(output: Path) -> Iterator[None]:
    """Make the folder ``engines`` where the output goes there, and take it away again if nothing was built."""
    made = output.parent == ENGINES and not ENGINES.exists()
    if made:
        try:
            ENGINES.mkdir()
        except OSError as error:
            raise OutputError(f"cannot make the folder {ENGINES}: {error.strerror}; give a file with -o") from error
    try:
        yield
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                ENGINES.rmdir()
        raise


class _Reader:
    """Checks the keys and values of a build file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sources: list[Path] = []  # further files that were read
        self._kinds: dict[str, Callable[[str, Any], Any]] = {
            "str": self._text,
            "str | None": self._text,
            "int": self._whole,
            "int | None": self._whole,
            "bool": self._switch,
            "tuple[int, ...] | None": self._batch,
            "Path": self._file,
            "Path | None": self._file,
            "tuple[str, ...]": self._labels,
            "tuple[float, ...] | None": self._numbers,
        }

    def settings(self, content: Mapping[str, Any], kind: type, prefix: str) -> dict[str, Any]:
        types = {field.name: str(field.type) for field in fields(kind) if field.name not in ("calibrate", "sources")}
        unknown = [prefix + key for key in content if key not in types]
        if unknown:
            known = ", ".join(types) + ("" if prefix else " and the table [calibrate]")
            raise UsageError(f"{self.path}: unknown key {', '.join(unknown)}; the keys are {known}")
        return {key: self._kinds[types[key]](prefix + key, value) for key, value in content.items()}

    def _wrong(self, key: str, wanted: str, value: Any) -> UsageError:
        return UsageError(f"{self.path}: {key} must be {wanted}, got {_shown(value)}")

    def _text(self, key: str, value: Any) -> str:
        if key == "calibrate.k" and _is_whole(value):
            return str(value)
        if not isinstance(value, str):
            raise self._wrong(key, "text", value)
        return value

    def _whole(self, key: str, value: Any) -> int:
        if not _is_whole(value) or value < 0:
            raise self._wrong(key, "a whole number of at least 0", value)
        return int(value)

    def _switch(self, key: str, value: Any) -> bool:
        if type(value) is not bool:
            raise self._wrong(key, "true or false", value)
        return value

    def _batch(self, key: str, value: Any) -> tuple[int, ...]:
        if not isinstance(value, list) or len(value) != 3 or not all(map(_is_whole, value)):
            raise self._wrong(key, "three whole numbers [MIN, OPT, MAX]", value)
        return tuple(value)

    def _file(self, key: str, value: Any) -> Path:
        if not isinstance(value, str) or not value:
            raise self._wrong(key, "a path", value)
        return self._path(key, value)

    def _path(self, key: str, value: str) -> Path:
        path = self.path.parent / value
        try:
            check_path(path)
            if "://" in value and not path.exists():
                check_path(Path(value))  # that it is an address does not show behind the recipe's folder
        except UsageError as error:
            raise UsageError(f"{self.path}: {key}: {error}") from None
        return path

    def _labels(self, key: str, value: Any) -> tuple[str, ...]:
        if isinstance(value, str):
            self.sources.append(self._path(key, value))
            return read_labels(self.sources[-1])
        if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
            raise self._wrong(key, "a list of texts or a file of them", value)
        return tuple(value)

    def _numbers(self, key: str, value: Any) -> tuple[float, ...]:
        values = value if isinstance(value, list) else [value]
        if not values or not all(type(v) is float or _is_whole(v) for v in values):
            raise self._wrong(key, "a number or a list of numbers, one per channel", value)
        return tuple(float(v) for v in values)


def _is_whole(value: Any) -> bool:
    return type(value) is int and abs(value) < MAX_WHOLE


def _shown(value: Any) -> str:
    """Return a value as a message shows it, however deep or long it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # a whole number of too many digits for decimal ones
        return "a number too large to print"
