"""What a pickle holds, read without unpickling: opcodes are followed, nothing they name is imported, made or called.

Dictionaries, lists, numbers and texts become values; tensors and arrays become `StoredTensor`; an object of a class
becomes a `Record` that knows the names of its class. A pickle that calls a function which is not known to give a plain
value is refused: it is a program, not data.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

from pyvimtrt.model.stored_tensor import MAX_AXES, BytesStorage, Storage, StoredTensor, row_major

MAX_OPCODES = 600_000  # a second or two; checkpoints with all states of training have 100,000
MAX_MEMO = 1 << 31


class CodeFoundError(Exception):
    """The pickle calls a function; its text is the name."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Pairs:
    """A dictionary as pairs. Not a dict: its keys are of any type, and may be chosen to make a hash table slow."""

    items: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(eq=False)
class Record(Pairs):
    """An object of a class that is not made: its name, what it was made from, its state, and a dictionary's items."""

    cls: Name = field(default_factory=lambda: Name("", ""))
    arguments: tuple[Any, ...] = ()
    state: Any = None


# Classes whose objects are written as a call of the class, and are plain values.
_PLAIN = {
    *(
        f"builtins.{name}"
        for name in (
            "set",
            "frozenset",
            "list",
            "tuple",
            "dict",
            "bytearray",
            "bytes",
            "complex",
            "slice",
            "range",
            "object",
        )
    ),
    *(
        f"pathlib.{name}"
        for name in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    ),
    *(f"collections.{name}" for name in ("OrderedDict", "defaultdict", "Counter", "deque")),
    *(f"datetime.{name}" for name in ("datetime", "date", "time", "timedelta", "timezone")),
    *(
        "argparse.Namespace",
        "types.SimpleNamespace",
        "decimal.Decimal",
        "fractions.Fraction",
        "uuid.UUID",
        "uuid.SafeUUID",
        "functools.partial",
        "zoneinfo.ZoneInfo",
    ),
    *("torch.device", "torch.dtype", "torch.Size", "torch.Generator", "torch.serialization._get_layout"),
    *("numpy.dtype", "numpy.multiarray.scalar", "numpy.multiarray._reconstruct"),
    *(f"numpy.random._pickle.{name}" for name in ("__randomstate_ctor", "__generator_ctor", "__bit_generator_ctor")),
}
_MAPPINGS = {"collections.OrderedDict", "builtins.dict"}
_ODD_TENSORS = {  # the kind, and where the shape stands in the arguments
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_qtensor": "quantized",
    "_rebuild_meta_tensor_no_storage": "meta",
    "_rebuild_wrapper_subclass": "wrapped",
    "_rebuild_device_tensor_from_numpy": "foreign",
    "_rebuild_device_tensor_from_cpu_tensor": "foreign",
}
_STORAGES = {
    "Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64", "Int": "int32",
    "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "ComplexDouble": "complex128",
    "ComplexFloat": "complex64", "Untyped": "uint8", "QInt8": "qint8", "QUInt8": "quint8", "QInt32": "qint32",
    "QUInt4x2": "quint4x2", "QUInt2x4": "quint2x4",
}  # fmt: skip
_STORAGE_BYTES = {
    "float64": 8,
    "int64": 8,
    "complex64": 8,
    "complex128": 16,
    "float32": 4,
    "int32": 4,
    "qint32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int16": 2,
}
_NUMPY_TYPES = {"f2": "float16", "f4": "float32", "f8": "float64", "c8": "complex64", "c16": "complex128"}


class TypedStorage(NamedTuple):
    """A storage and the type of its elements."""

    dtype: str
    storage: Storage
    first: int = 0  # element that counts as the first


StorageOf = Callable[[str, int, str], Storage]  # key, bytes, the element's type -> the storage


@dataclass(eq=False)
class _Array(Record):
    """An array of NumPy; its state says all."""

    tensor: StoredTensor | None = None


def read_pickle(stream: IO[bytes], storage_of: StorageOf, size: int) -> Any:
    """Return what the pickle at the stream's position holds, of ``size`` bytes at most; the stream ends behind it.

    Raises CodeFoundError where it calls functions, ValueError where it is damaged or too long.
    """
    try:
        return _Reader(storage_of, size).run(stream)
    except (
        TypeError,
        IndexError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
        MemoryError,
        UnicodeError,
        SyntaxError,
    ) as error:
        raise ValueError(f"it is damaged: {error}") from error


class _Reader:
    """The stack machine of pickles, on inert values."""

    def __init__(self, storage_of: StorageOf, size: int) -> None:
        self.storage_of = storage_of
        self.unencoded = size  # bytes written as text that may come yet: a pickle can ask for the same again and again
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, TypedStorage] = {}

    def run(self, stream: IO[bytes]) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count > MAX_OPCODES:
                raise ValueError(f"it holds more than {MAX_OPCODES} steps; save the state dict alone")
            name = opcode.name
            if name == "STOP":
                return self._pop()
            if name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _LITERALS:
                self.stack.append(argument)
            else:
                step = getattr(self, f"op_{name.lower()}", None)
                if step is None:
                    raise ValueError(f"it holds the step {name}, which checkpoints have not")
                step(argument)
        raise ValueError("it has no end")

    # The stack

    def _pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise ValueError("it is damaged: its stack is empty")
        return self.stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _top(self) -> Any:
        return self.stack[-1]

    def op_mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def op_pop(self, _: Any) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self._pop()

    def op_pop_mark(self, _: Any) -> None:
        self._pop_to_mark()

    def op_dup(self, _: Any) -> None:
        self.stack.append(self._top())

    def op_proto(self, _: Any) -> None:
        """The version changes nothing here."""

    op_frame = op_proto

    def op_binput(self, index: int) -> None:
        if not 0 <= index < MAX_MEMO:
            raise ValueError("it is damaged: a number of its memory is out of range")
        self.memo[index] = self._top()

    op_put = op_long_binput = op_binput

    def op_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self._top()

    def op_binget(self, index: int) -> None:
        self.stack.append(self.memo[index])

    op_get = op_long_binget = op_binget

    # Values

    def op_empty_list(self, _: Any) -> None:
        self.stack.append([])

    op_empty_set = op_empty_list

    def op_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def op_empty_dict(self, _: Any) -> None:
        self.stack.append(Pairs())

    def op_list(self, _: Any) -> None:
        self.stack.append(self._pop_to_mark())

    op_frozenset = op_list

    def op_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._pop_to_mark()))

    def op_tuple1(self, _: Any) -> None:
        self.stack.append((self._pop(),))

    def op_tuple2(self, _: Any) -> None:
        second, first = self._pop(), self._pop()
        self.stack.append((first, second))

    def op_tuple3(self, _: Any) -> None:
        third, second, first = self._pop(), self._pop(), self._pop()
        self.stack.append((first, second, third))

    def op_dict(self, _: Any) -> None:
        self.stack.append(Pairs(_pair_up(self._pop_to_mark())))

    def op_append(self, _: Any) -> None:
        value = self._pop()
        self._extend([value])

    def op_appends(self, _: Any) -> None:
        self._extend(self._pop_to_mark())

    op_additems = op_appends

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Record):
            target.items.extend(enumerate(values, len(target.items)))
        elif isinstance(target, list):
            target.extend(values)
        else:
            raise ValueError("it is damaged: items are put into what is no list")

    def op_setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set([(key, value)])

    def op_setitems(self, _: Any) -> None:
        self._set(_pair_up(self._pop_to_mark()))

    def _set(self, pairs: list[tuple[Any, Any]]) -> None:
        target = self._top()
        if not isinstance(target, Pairs):
            raise ValueError("it is damaged: items are put into what is no dictionary")
        target.items.extend(pairs)

    # Names, objects and calls

    def op_global(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self.stack.append(_name(module, name))

    def op_stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise ValueError("it is damaged: a name is no text")
        self.stack.append(_name(module, name))

    def op_inst(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self.stack.append(self._call(_name(module, name), tuple(self._pop_to_mark())))

    def op_obj(self, _: Any) -> None:
        cls, *arguments = self._pop_to_mark()
        self.stack.append(self._call(cls, tuple(arguments)))

    def op_newobj(self, _: Any) -> None:
        arguments, cls = self._pop(), self._pop()
        self.stack.append(self._make(cls, arguments))

    def op_newobj_ex(self, _: Any) -> None:
        self._pop()
        self.op_newobj(None)

    def op_reduce(self, _: Any) -> None:
        arguments, function = self._pop(), self._pop()
        self.stack.append(self._call(function, arguments))

    def op_build(self, _: Any) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, Pairs | StoredTensor):  # attributes of an OrderedDict or a parameter do not matter
            raise ValueError("it is damaged: a state is given to what is no object")

    def op_binpersid(self, _: Any) -> None:
        identity = self._pop()
        # A class, in old files with its text.
        if isinstance(identity, tuple) and len(identity) > 1 and identity[0] == "module":
            self.stack.append(identity[1])
        else:
            self.stack.append(self._storage(identity))

    def _make(self, cls: Any, arguments: Any) -> Any:
        """Stand for a new object, whose class gives it its state later: no class is made or called."""
        if not isinstance(cls, Name) or not isinstance(arguments, tuple):
            raise ValueError("it is damaged: an object is made of what is no class")
        return Pairs() if str(cls) in _MAPPINGS else Record(cls=cls, arguments=arguments)

    def _call(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise ValueError("it is damaged: what is called is no function")
        text = str(function)
        if function.module == "torch._utils":
            tensor = self._tensor(function.name, arguments)
            if tensor is not None:
                return tensor
        if text == "torch._tensor._rebuild_from_type_v2":
            inner, _, inner_arguments, _ = arguments
            return self._call(inner, inner_arguments)
        if text == "_codecs.encode":  # bytes, before version 3 of pickles
            value, encoding = arguments
            if not isinstance(value, str) or encoding not in ("latin1", "latin-1"):
                raise ValueError("it is damaged: bytes are not written as bytes")
            self.unencoded -= len(value)
            if self.unencoded < 0:
                raise ValueError("it writes more bytes as text than it has; save its state dict as .safetensors")
            return value.encode("latin-1")
        if text == "builtins.getattr" and isinstance(arguments[0], Name) and isinstance(arguments[1], str):
            return Name(arguments[0].module, f"{arguments[0].name}.{arguments[1]}")
        if text == "copyreg._reconstructor":
            return self._make(arguments[0], ())
        if text == "numpy.multiarray._reconstruct":
            return _Array(cls=function)
        if text == "numpy.numeric._frombuffer":
            buffer, dtype, shape, order = arguments
            return _Array(cls=function, state=(1, shape, dtype, order == "F", buffer))
        if text not in _PLAIN:
            raise CodeFoundError(text)
        if text in _MAPPINGS:
            pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
            return Pairs([(key, value) for key, value in pairs])
        if text in ("builtins.set", "builtins.frozenset", "builtins.list", "builtins.tuple") and arguments:
            return arguments[0]
        if text == "torch.Size":
            return tuple(arguments[0])
        return Record(cls=function, arguments=arguments)

    # Tensors

    def _tensor(self, function: str, arguments: tuple[Any, ...]) -> StoredTensor | None:
        """Return the tensor that one of PyTorch's functions builds, None for another function."""
        if function in _ODD_TENSORS:
            inside = [item for value in arguments if isinstance(value, tuple) for item in value]
            shapes = [
                value for value in (*arguments, *inside) if isinstance(value, tuple) and value and _are_counts(value)
            ]
            return StoredTensor("unknown", shapes[0] if shapes else (), kind=_ODD_TENSORS[function])
        if function in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            if not isinstance(arguments[0], StoredTensor):
                raise ValueError("it is damaged: a parameter holds no tensor")
            return arguments[0]
        if function not in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"):
            return None
        storage, offset, shape, strides = arguments[:4]
        if (
            not isinstance(storage, TypedStorage)
            or not _are_counts((offset,))
            or not _are_counts(shape)
            or not _are_counts(strides)
        ):
            raise ValueError("it is damaged: a tensor has no storage, shape or strides")
        if len(shape) != len(strides) or len(shape) > MAX_AXES:
            raise ValueError("it is damaged: shape and strides of a tensor differ")
        dtype = storage.dtype
        if function == "_rebuild_tensor_v3":
            dtype = arguments[6].name if isinstance(arguments[6], Name) else "unknown"
        bits = arguments[7 if function == "_rebuild_tensor_v3" else 6 :]  # of conjugated and negated views
        kind = "negated or conjugated" if bits and isinstance(bits[0], Pairs) and bits[0].items else ""
        return StoredTensor(dtype, tuple(shape), tuple(strides), storage.first + offset, storage.storage, kind)

    def _storage(self, identity: Any) -> TypedStorage:
        if (
            not isinstance(identity, tuple)
            or len(identity) < 5
            or identity[0] != "storage"
            or not isinstance(identity[1], Name)
        ):
            raise ValueError("it is damaged: it refers to something that is no storage")
        _, cls, key, _, count = identity[:5]
        dtype = _STORAGES.get(cls.name.removesuffix("Storage"), "unknown")
        if not isinstance(key, str | int) or not _are_counts((count,)):
            raise ValueError("it is damaged: a storage has no key or size")
        known = self.storages.get(str(key))
        if known is None:
            known = TypedStorage(dtype, self.storage_of(str(key), count * _STORAGE_BYTES.get(dtype, 1), dtype))
            self.storages[str(key)] = known
        view = identity[5] if len(identity) > 5 else None
        first = view[1] if isinstance(view, tuple) and _are_counts(view[1:2]) else 0
        return TypedStorage(dtype, known.storage, first)


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *(
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
    ),
    *(
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "SHORT_BINBYTES",
        "BINBYTES8",
        "BYTEARRAY8",
    ),
}
_MODULES = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "pathlib._local": "pathlib",
    "collections.abc": "collections",
}
_NUMPY = ("numpy.core.", "numpy._core.")


def _name(module: str, name: str) -> Name:
    """Return a name; modules that moved between versions have one name."""
    module = _MODULES.get(module, module)
    for prefix in _NUMPY:
        if module.startswith(prefix):
            module = "numpy." + module[len(prefix) :]
    return Name(module, name)


def _pair_up(items: list[Any]) -> list[tuple[Any, Any]]:
    if len(items) % 2:
        raise ValueError("it is damaged: a key has no value")
    return list(zip(items[::2], items[1::2], strict=True))


def _are_counts(values: Any) -> bool:
    return isinstance(values, tuple | list) and all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def as_tensor(value: Any) -> StoredTensor | None:
    """Return a value of a pickle as a tensor where it is one, or an array of NumPy."""
    if isinstance(value, StoredTensor):
        return value
    if not isinstance(value, _Array):
        return None
    if value.tensor is None:
        value.tensor = _array_tensor(value)
    return value.tensor


def _array_tensor(value: _Array) -> StoredTensor | None:
    if not isinstance(value.state, tuple) or len(value.state) != 5:
        return None
    _, shape, dtype, fortran, data = value.state
    if not _are_counts(shape) or len(shape) > MAX_AXES or not isinstance(data, bytes | bytearray):
        return None
    shape = tuple(shape)
    strides = row_major(shape[::-1])[::-1] if fortran is True else row_major(shape)
    kind, big_endian = _numpy_type(dtype)
    return StoredTensor(kind, shape, strides, 0, BytesStorage(bytes(data), big_endian))


def _numpy_type(dtype: Any) -> tuple[str, bool]:
    if (
        not isinstance(dtype, Record)
        or str(dtype.cls) != "numpy.dtype"
        or not dtype.arguments
        or not isinstance(dtype.arguments[0], str)
    ):
        return "unknown", False
    order = dtype.state[1] if isinstance(dtype.state, tuple) and len(dtype.state) > 1 else "<"
    code = dtype.arguments[0]
    return _NUMPY_TYPES.get(code, code), order == ">"
