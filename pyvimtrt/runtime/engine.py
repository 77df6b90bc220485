"""One interface for every engine: images in, logits or classes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pyvimtrt.data.images import Source
from pyvimtrt.data.reader import ImageReader
from pyvimtrt.defaults import TOPK
from pyvimtrt.errors import DataError, NetworkError
from pyvimtrt.families import ModelConfig
from pyvimtrt.graph.network import PIXEL_ZERO, NetworkInfo

if TYPE_CHECKING:
    from typing import Self  # from Python 3.11 on

BATCH = 16  # images read and run at a time by `classify`


@dataclass(frozen=True)
class Prediction:
    """One class of an image: index, label (the index as text where the model has no labels), probability."""

    index: int
    label: str
    probability: float


class Engine(ABC):
    """A quantized network ready to run. Engines that hold more than memory of the process give it back by `close`, or
    at the end of a `with`.
    """

    backend: str
    in_flight = 1  # calls of `submit` that run beside each other

    source: Path | None = None  # the file it was loaded from, by which it is pickled
    load_again: Callable[..., Engine] | None = None  # what loaded it: a function of (source, backend, info, settings)

    largest_batch: int | None = None  # images run at a time, of which more are run in pieces; None: no limit

    def __init__(self, info: NetworkInfo, config: ModelConfig) -> None:
        self.info = info
        self.config = config

    def __repr__(self) -> str:
        c, batch = self.config, "any" if self.largest_batch is None else f"1 to {self.largest_batch} at a time"
        return (
            f"<{type(self).__name__} {self.info.name}: backend {self.backend}{self._how()}; recipe {self.info.recipe}, "
            f"state {self.info.state}; batch {batch}; uint8 [B, {c.channels}, {c.img}, {c.img}] -> float32 "
            f"[B, {c.classes}]>"
        )

    def _how(self) -> str:
        """Return what `repr` says of the way an engine runs, behind its backend."""
        return ""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by path: whoever unpickles loads the same file again, as in another process of `multiprocessing`.

        Raises NetworkError for an engine that was not loaded from a file.
        """
        if self.source is None or self.load_again is None:
            raise NetworkError(
                "an engine made from a network in memory cannot be pickled; save the network, and load it with "
                "pyvimtrt.load_engine"
            )
        return self.load_again, (self.source, self.backend, self.info, self._settings())

    def _settings(self) -> dict[str, Any]:
        """Return the keywords that this engine was made with, for `__reduce__`."""
        return {}

    def set_threads(self, threads: int) -> None:  # noqa: B027, most engines have none to set
        """Run with another number of threads from now on, where the engine takes one."""

    def close(self) -> None:  # noqa: B027, an engine of memory alone has nothing to do
        """Give back what the engine holds; it cannot run any more. Closing twice does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abstractmethod
    def run_pixels(self, pixels: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
        """Return logits [B, classes] of int8 pixel - 128 [B, C, H, W], B at least 1, C-contiguous and of the right
        shape: `run` checks.
        """

    def submit(self, images: npt.NDArray[Any], *, normalized: bool = False) -> Callable[[], npt.NDArray[np.float32]]:
        """Begin with images as `run` takes them, and return the function that returns their logits, to be called once.

        On a GPU the next images are copied there while the first are computed: `in_flight` of them at a time.
        """
        logits = self.run(images, normalized=normalized)
        return lambda: logits

    def run(self, images: npt.NDArray[Any], *, normalized: bool = False) -> npt.NDArray[np.float32]:
        """Return float32 logits [B, classes].

        ``images``, in the host's memory, is uint8 [B, C, H, W], pixels; or float32 in the model's normalized units,
        (pixel / 255 - mean) / std, which is turned back into pixels: rne((x * std + mean) * 255).

        float32 that cannot be normalized, as no pixel has such a value, or that may be pixels in 0..1, is refused.
        ``normalized=True`` says that it is: then all values are taken, and those beyond the pixels' are clipped.

        Raises DataError for any other type or shape, NetworkError where logits are not finite.
        """
        pixels = as_int8(images, self.info, self.config, normalized)
        if len(pixels) == 0:
            return np.empty((0, self.config.classes), np.float32)
        return finite(self.run_pixels(pixels))

    def classify(
        self,
        images: Sequence[Source] | npt.NDArray[np.uint8],
        topk: int = TOPK,
        reader: ImageReader | None = None,
    ) -> list[list[Prediction]]:
        """Return the ``topk`` most probable classes of each image, none for those that ``reader`` leaves out.

        An image is what `pyvimtrt.load_image` takes: the path of a file, its bytes, a PIL image or a uint8 array. By
        default the first that cannot be read raises DataError.
        """
        if (
            isinstance(images, str | bytes | bytearray | memoryview | Path | Image.Image)
            or getattr(images, "ndim", 4) < 4
        ):
            raise DataError(f"classify takes a list of images, got one ({type(images).__name__}); give [image]")
        reader = reader or ImageReader()
        found: list[list[Prediction]] = []
        for start in range(0, len(images), BATCH):
            part = [
                reader.read(each, self.config, "" if isinstance(each, str | Path) else f"image {number}")
                for number, each in enumerate(images[start : start + BATCH], start)
            ]
            good = [image for image in part if image is not None]
            rows = iter(self.run(np.stack(good)) if good else ())
            found += [[] if image is None else self.top_classes(next(rows), topk) for image in part]
        return found

    def top_classes(self, logits: npt.NDArray[np.float32], topk: int) -> list[Prediction]:
        """Return the most probable classes of one row of logits; equal logits keep the order of the classes."""
        return top_classes(logits, topk, self.info.labels)


def finite(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return logits as they are. Raises NetworkError where some are not finite."""
    if not np.isfinite(logits).all():
        raise NetworkError(
            "the network gives logits that are not finite; its file is damaged or was not made by pyvimtrt build"
        )
    return logits


def as_int8(
    images: npt.NDArray[Any], info: NetworkInfo, config: ModelConfig, normalized: bool = False
) -> npt.NDArray[np.int8]:
    """Return images as networks take them, pixel - 128, C-contiguous. Raises DataError as `as_uint8`."""
    return (np.ascontiguousarray(as_uint8(images, info, config, normalized)) ^ np.uint8(PIXEL_ZERO)).view(np.int8)


def as_uint8(
    images: npt.NDArray[Any],
    info: NetworkInfo,
    config: ModelConfig,
    normalized: bool = False,
    saying: str = "normalized=True",
) -> npt.NDArray[np.uint8]:
    """Return images [B, C, H, W] as the pixels a model takes: uint8 as they are, float32 in normalized units as rne((x
    * std + mean) * 255).

    ``normalized`` as for `Engine.run`; ``saying`` is how a caller says so. Raises DataError for any other type or
    shape, and for values that are not finite or may be no normalized ones.
    """
    if hasattr(images, "__cuda_array_interface__"):  # of an array in the host's memory PyTorch has none
        raise DataError("images lie in a GPU's memory; move them to the host, or call run_device with int8 pixel - 128")
    images = np.asarray(images)
    shape = (config.channels, config.img, config.img)
    if images.ndim != 4 or images.shape[1:] != shape:
        raise DataError(f"images must have the shape [B, {', '.join(map(str, shape))}], got {list(images.shape)}")
    if images.dtype == np.uint8:
        return images
    if images.dtype != np.float32:
        raise DataError(f"images must be uint8, or float32 in normalized units, got {images.dtype}")
    if len(images):
        _check_normalized(images, info, None if normalized else saying)
    mean, std = (np.array(v, np.float64)[:, None, None] for v in (info.mean, info.std))
    return np.clip(np.rint((images * std + mean) * 255), 0, 255).astype(np.uint8)


def _check_normalized(images: npt.NDArray[np.float32], info: NetworkInfo, saying: str | None) -> None:
    """Raise DataError for images that are not finite or, unless ``saying`` is None, may be no normalized ones.

    They are looked at twice, for the smallest and the largest value of each channel: a thirtieth of what turning them
    into pixels takes.
    """
    with np.errstate(invalid="ignore"):  # NaN, which is refused
        low, high = images.min(axis=(2, 3)).min(axis=0), images.max(axis=(2, 3)).max(axis=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise DataError("images hold NaN or infinity")
    if saying is None:
        return
    mean, std = (np.array(v, np.float64) for v in (info.mean, info.std))
    least, most = (0 - mean) / std, (1 - mean) / std
    half = 0.5 / 255 / std  # what is rounded to a pixel is one
    known = (
        f"normalized images of this model lie between {least.min():.4g} and {most.max():.4g} "
        f"(mean {_listed(info.mean)}, deviation {_listed(info.std)})"
    )
    if (low < least - half).any() or (high > most + half).any():
        wrong = high.max() if (high > most + half).any() else low.min()
        raise DataError(
            f"the float32 images hold {wrong:.4g}, but {known}; give pixels 0..255 as uint8, or (pixel / 255 - mean) / "
            f"std; {saying} takes them as they are, and clips"
        )
    if low.min() >= 0 and high.max() <= 1 and (least.min() < 0 or most.max() > 1):
        raise DataError(
            f"all values of the float32 images lie between 0 and 1, as those of pixels / 255 do, but {known}; give "
            f"np.rint(255 * images).astype(np.uint8), or {saying} where they are normalized"
        )


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def top_classes(logits: npt.NDArray[np.float32], topk: int, labels: Sequence[str] = ()) -> list[Prediction]:
    """Return the most probable classes of one row of logits; equal logits keep the order of the classes."""
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = exponentials / exponentials.sum()
    order = np.argsort(-logits, kind="stable")[: max(1, topk)]
    return [Prediction(int(i), labels[i] if labels else str(i), float(probabilities[i])) for i in order]
