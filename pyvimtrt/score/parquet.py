"""Rows of Parquet files: which column holds the images, how many there are, and the images or their paths."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyvimtrt.errors import DataError, VimTrtError, missing_extra
from pyvimtrt.score.parquet_pages import read_pages

BYTES_COLUMNS = (
    "image",
    "bytes",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "content",
    "data",
    "images",
)  # looked for in this order
PATH_COLUMNS = (
    "image",
    "image_path",
    "img_path",
    "path",
    "file_path",
    "filepath",
    "file_name",
    "filename",
    "file",
    "images",
)
MAX_GROUP_ROWS = 1 << 22  # of a row group; writers make them of a million at most
NAMED = 20  # columns in a message

Value = bytes | str | None  # an image, the path of one, or neither


@dataclass(frozen=True)
class Group:
    """A row group: its rows, and its images, which are more where rows hold lists of them. ``is_list`` says whether."""

    rows: int
    images: int
    is_list: bool


def describe(path: Path, wanted: str | None) -> tuple[str, list[Group]]:
    """Return the column of the images, or of their paths, and the row groups. Raises DataError where there is none."""
    with _opened(path, f"{path} is not a Parquet file") as file:
        column, is_list = _choose(file.schema_arrow, path, wanted)
        return column, [_group(path, file.metadata.row_group(i), column, is_list) for i in range(file.num_row_groups)]


def has_images(path: Path) -> bool:
    """Return whether a file has a column that could hold images themselves; one that cannot be read could."""
    try:
        with _opened(path, "") as file:
            return any(_holds(field.type, _is_bytes) for field in file.schema_arrow)
    except DataError:
        return True


def read_values(
    path: Path, column: str, group: int, first: int, count: int, batch: int
) -> Iterator[tuple[int, str, Value]]:
    """Yield the images of ``count`` rows from ``first`` on of a row group, by row, and in a list by place: /0, /1.

    A path stands for an image that has no bytes. At most ``batch`` rows are read at a time, fewer where rows share
    large values. Raises DataError for a file that is damaged, or claims more than images take.
    """
    end, position = first + count, 0
    with _opened(path, f"cannot read {path}") as file:
        leaves = _leaves(file.metadata.row_group(group), column)
        batch = min(
            _checked_batch(path, file.metadata.row_group(group).column(leaf), batch) for leaf in leaves.values()
        )
        for rows in file.iter_batches(batch, row_groups=[group], columns=list(leaves), use_threads=False):
            begin, position = position, position + rows.num_rows
            values = rows.column(column)
            for index in range(max(begin, first), min(position, end)):
                value = values[index - begin].as_py()
                if isinstance(value, list):
                    yield from (
                        (index - first, f"/{place}", _image(inner)) for place, inner in enumerate(value or [None])
                    )
                else:
                    yield index - first, "", _image(value)
            if position >= end:
                return
    raise DataError(
        f"cannot read {path}: row group {group} claims {end:,} rows or more and has {position:,}; copy it again"
    )


@contextlib.contextmanager
def _opened(path: Path, problem: str) -> Iterator[Any]:
    """Open a Parquet file. Raises DataError, which begins with the problem, for whatever its parsing trips on."""
    parquet = import_parquet()
    try:
        if not path.is_file() and path.exists():
            raise DataError(f"{path} is no regular file; give a Parquet file")
        with parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            yield file
    except (VimTrtError, GeneratorExit):
        raise
    except Exception as error:  # Arrow raises each of Python's kinds of errors, and its own
        raise DataError(f"{problem}: {getattr(error, 'strerror', None) or error}") from error


def _group(path: Path, group: Any, column: str, is_list: bool) -> Group:
    rows = int(group.num_rows)
    leaves = [group.column(index) for index in _leaves(group, column).values()]
    if not is_list and any(leaf.num_values != rows for leaf in leaves):
        raise DataError(
            f"cannot read {path}: a row group claims {rows:,} rows, its columns other numbers; copy it again"
        )
    # An empty list counts as one there, as it does when it is read.
    images = int(leaves[0].num_values) if is_list else rows
    if not 0 <= max(rows, images) <= MAX_GROUP_ROWS:
        raise DataError(
            f"{path} has {max(rows, images):,} images in one row group; at most {MAX_GROUP_ROWS:,} are read, write "
            "smaller ones"
        )
    return Group(rows, images, is_list)


def _leaves(group: Any, column: str) -> dict[str, int]:
    """Return the columns that are read, by their paths in the schema: of a structure only bytes and path."""
    paths = {group.column(i).path_in_schema: i for i in range(group.num_columns)}
    inside = {path: i for path, i in paths.items() if path.startswith(f"{column}.") or path == column}
    chosen = {path: i for path, i in inside.items() if path.rsplit(".", 1)[-1] in ("bytes", "path")}
    return chosen or inside


def _checked_batch(path: Path, chunk: Any, batch: int) -> int:
    offsets = [offset for offset in (chunk.dictionary_page_offset, chunk.data_page_offset) if offset]
    if not offsets:
        return batch
    with path.open("rb") as file:
        return read_pages(file, min(offsets), chunk.total_compressed_size, chunk.num_values, str(path)).batch(batch)


def _image(value: Any) -> Value:
    if isinstance(value, dict):
        content = value.get("bytes")
        value = value.get("path") if content is None else content
    return value or None


def _choose(schema: Any, path: Path, wanted: str | None) -> tuple[str, bool]:
    """Return the column of the images, and whether it holds lists of them."""
    types = {field.name: field.type for field in schema}
    images = [name for name, kind in types.items() if _holds(kind, _is_bytes)]
    paths = [name for name, kind in types.items() if name not in images and _holds(kind, _is_text)]
    if wanted is not None:
        if wanted not in images + paths:
            raise DataError(f"{path} has no images in a column {wanted!r}; {_told(images, paths)}")
        return wanted, _is_list(types[wanted])
    found = images if len(images) == 1 else [name for name in BYTES_COLUMNS if name in images]
    if not images:
        found = [name for name in PATH_COLUMNS if name in paths]
    if not found:
        problem = "several columns of bytes" if images else "no column of bytes, and none known for paths"
        raise DataError(f"{path} has {problem}; name the images' with --column: {_told(images, paths)}")
    return found[0], _is_list(types[found[0]])


def _told(images: list[str], paths: list[str]) -> str:
    told = f"columns of bytes: {_few(images)}; of text, which may be paths: {_few(paths)}"
    return (
        told if images or paths else f"{told}; images are written as bytes or paths, or lists of these, not as numbers"
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (", .." if len(names) > NAMED else "") if names else "none"


def _holds(kind: Any, is_one: Any) -> bool:
    """Return whether a type is one, a structure with one as ``bytes`` or ``path``, or a list of either."""
    import pyarrow as pa

    if _is_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_struct(kind):
        return any(kind.get_field_index(name) >= 0 and is_one(kind.field(name).type) for name in ("bytes", "path"))
    return bool(is_one(kind))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _is_bytes(kind: Any) -> bool:
    import pyarrow as pa

    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    return any(test(kind) for test in tests)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def import_parquet() -> Any:
    """Return pyarrow.parquet. Raises BackendError where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise missing_extra("pyarrow", "ray", "Parquet") from error
    return pyarrow.parquet


__all__ = ["Group", "describe", "has_images", "import_parquet", "read_values"]
