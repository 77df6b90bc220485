"""Reads image files for a run that goes on: what cannot be read is left out, counted and named."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyvimtrt.data.images import MAX_PIXELS, PixelSize, Source, find_images, load_image
from pyvimtrt.errors import DataError

NAMED = 10  # reasons among the warnings; more would bury everything else


class ImageReader:
    """Reads image files. A ``strict`` one raises the first error; another keeps it and goes on."""

    def __init__(self, strict: bool = True, max_pixels: int | None = None) -> None:
        """``max_pixels`` of one image, by default MAX_PIXELS."""
        self.strict = strict
        self.max_pixels = MAX_PIXELS if max_pixels is None else max_pixels
        self._reasons: dict[str, str] = {}  # by file, each once: a run may read its images twice

    @property
    def left_out(self) -> tuple[str, ...]:
        """Why files were left out, a sentence each."""
        return tuple(self._reasons.values())

    def read(self, source: Source, config: PixelSize, name: str = "") -> npt.NDArray[np.uint8] | None:
        """Return an image as `load_image` does, None where it is left out. One without a path has a ``name``."""
        try:
            return load_image(source, config, self.max_pixels, name=name)
        except DataError as error:
            self.leave_out(error, source if isinstance(source, Path) else Path(name or str(source)))
            return None

    def reason(self, path: Path) -> str:
        """Return why a file was left out."""
        return self._reasons[str(path)]

    def find(self, given: Sequence[Path]) -> list[Path]:
        """Return image files: those given, and those below folders among them."""
        found: list[Path] = []
        for path in given:
            try:
                found += find_images(path, self.leave_out) if path.is_dir() else [path]
            except (DataError, OSError) as error:  # OSError: a name that is too long, a folder that may not be entered
                self.leave_out(
                    error if isinstance(error, DataError) else DataError(f"cannot read {path}: {error.strerror}")
                )
        return found

    def leave_out(self, error: DataError, path: Path | None = None) -> None:
        """Go on without what the error is about, or raise it where strict."""
        if self.strict:
            raise error
        self._reasons[str(path or error)] = str(error)

    def nothing_read(self, source: str) -> DataError:
        """Return the error for a run that has left out everything."""
        count = len(self._reasons)
        if not count:
            return DataError(f"{source} holds no images")
        first = self.left_out[0]
        return DataError(
            first if count == 1 else f"none of the {count} images of {source} can be read; the first: {first}"
        )

    def warnings(self) -> list[str]:
        """Return sentences that count and name what was left out, none where all was read."""
        count = len(self._reasons)
        if not count:
            return []
        what = "1 file was" if count == 1 else f"{count} files were"
        more = [f"left out: {count - NAMED} more; --json names all"] if count > NAMED else []
        named = [f"left out: {reason}" for reason in self.left_out[:NAMED]]
        return [f"{what} left out as unreadable; --strict ends at the first", *named, *more]
