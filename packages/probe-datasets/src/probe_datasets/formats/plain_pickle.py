"""Pickles of plain data, read without running any of them.

A pickle is a program, and Python's reader runs it. This is another reader, for the few
instructions that dictionaries, lists, numbers, text, bytes and NumPy arrays need. It imports
nothing by name, calls nothing that the file chooses, and refuses every other instruction. Bytes
stay views of the file, so an array costs no memory of its own, and no length that the file claims
is allocated.

Reference:
    CPython, Lib/pickletools.py (the instructions); numpy, core/src/multiarray/methods.c
    (array_setstate, the five parts of an array's state).
"""

import os
import struct
from typing import Any

import numpy as np

from probe_datasets.formats.files import DataError, data_error

__all__ = ["load_plain"]

_MAX_STEPS = 20_000_000
_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_KINDS = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"}


class _Mark:
    """Where a run of items begins on the stack."""


class _Function:
    """One of the functions that an array is made of; it is never called, only recognised."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Dtype:
    """A type of number, until its state is known."""

    def __init__(self, kind: str) -> None:
        self.kind, self.order = kind, "<"


class _Array:
    """An array, until its state is known."""

    def __init__(self) -> None:
        self.value: Any = None


_MARK = _Mark()
_FUNCTIONS = {
    **{(module, "_reconstruct"): "reconstruct" for module in _MODULES},
    **{(module, "scalar"): "scalar" for module in _MODULES},
    **{(module, "_frombuffer"): "frombuffer" for module in _NUMERIC},
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    # Protocol 2 has no instruction for bytes.
    **{(m, n): "bytes" for m in ("builtins", "__builtin__") for n in ("bytes", "bytearray")},
}
_CONSTANTS = {ord("N"): None, 0x88: True, 0x89: False}
_NUMBERS = {
    ord("J"): struct.Struct("<i"),
    ord("K"): struct.Struct("<B"),
    ord("M"): struct.Struct("<H"),
    ord("G"): struct.Struct(">d"),
}
_TEXT = {0x8C: 1, ord("X"): 4, 0x8D: 8}
_BYTES = {ord("C"): 1, ord("B"): 4, 0x8E: 8, 0x96: 8}
_TUPLES = {ord(")"): 0, 0x85: 1, 0x86: 2, 0x87: 3}


def load_plain(data: memoryview, path: str | os.PathLike[str]) -> Any:
    """The dictionaries, lists, numbers, text, bytes and arrays of a pickle of protocol 2 to 5.

    Args:
        data: the file, such as a mapping of it; arrays in the result are views of it.
        path: where it comes from, for the message.

    Returns:
        Plain containers; bytes are memoryviews, arrays read-only NumPy arrays of numbers. An array
        of objects is a list, and tuples are tuples.

    Raises:
        DataError: cut short, damaged, or anything in it that is not plain data.
    """
    try:
        return _finished(_Reader(data).run(), {})
    except DataError:
        raise
    except RecursionError as error:
        raise _refused(path, "it is nested without end") from error
    except LookupError as error:  # an instruction or an object that there is not
        raise _refused(path, "it is damaged, or no pickle") from error
    except (ValueError, TypeError, OverflowError, struct.error) as error:
        raise _refused(path, str(error) or type(error).__name__) from error


def _refused(path: str | os.PathLike[str], reason: str) -> DataError:
    problem = f"cannot be read as plain data ({reason[:200]})"
    expected = "a pickle of dictionaries, lists and arrays of numbers"
    return data_error(path, problem, expected, "take the file from its official source")


class _Reader:
    """The stack and memory of one pickle."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.position = data, 0
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(_MAX_STEPS):
            code = self.take(1)[0]
            if code == ord("."):
                if len(self.stack) != 1:
                    raise ValueError(f"it ends with {len(self.stack)} values")
                return self.stack[0]
            self.step(code)
        raise ValueError(f"it has more than {_MAX_STEPS} instructions")

    def take(self, length: int) -> memoryview:
        end = self.position + length
        if end > len(self.data):
            raise ValueError(f"it is cut short: byte {end} of {len(self.data)} is asked for")
        part = self.data[self.position : end]
        self.position = end
        return part

    def integer(self, num_bytes: int) -> int:
        return int.from_bytes(self.take(num_bytes), "little")

    def line(self) -> str:
        end = self.position
        while self.data[end] != 10:
            end += 1
            if end - self.position > 200 or end >= len(self.data):
                raise ValueError("a name without end")
        text = bytes(self.data[self.position : end]).decode("ascii")
        self.position = end + 1
        return text

    def step(self, code: int) -> None:
        stack = self.stack
        if code in _TEXT:
            stack.append(bytes(self.take(self.integer(_TEXT[code]))).decode("utf-8"))
        elif code in _BYTES:
            stack.append(self.take(self.integer(_BYTES[code])))
        elif code in _NUMBERS:
            form = _NUMBERS[code]
            stack.append(form.unpack(self.take(form.size))[0])
        elif code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code == 0x8A:  # LONG1
            stack.append(int.from_bytes(self.take(self.integer(1)), "little", signed=True))
        elif code in _TUPLES:
            count = _TUPLES[code]
            stack.append(tuple(self.pop(count)))
        elif code == ord("t"):
            stack.append(tuple(self.pop_to_mark()))
        elif code in (ord("}"), ord("]"), ord("(")):
            stack.append({ord("}"): {}, ord("]"): [], ord("("): _MARK}[code])
        elif code in (ord("a"), ord("e")):
            items = self.pop(1) if code == ord("a") else self.pop_to_mark()
            self.top(list).extend(items)
        elif code in (ord("s"), ord("u")):
            items = self.pop(2) if code == ord("s") else self.pop_to_mark()
            target = self.top(dict)
            for key, value in zip(items[::2], items[1::2], strict=True):
                if not isinstance(key, str | int):
                    raise ValueError(f"a key of kind {type(key).__name__}")
                target[key] = value
        elif code in (ord("q"), ord("r"), 0x94):  # to memory
            number = {ord("q"): 1, ord("r"): 4}.get(code)
            self.memory[len(self.memory) if number is None else self.integer(number)] = stack[-1]
        elif code in (ord("h"), ord("j")):  # from memory
            stack.append(self.memory[self.integer(1 if code == ord("h") else 4)])
        elif code == ord("0"):
            self.pop(1)
        elif code == 0x80:  # protocol
            self.take(1)
        elif code == 0x95:  # frame
            self.take(8)
        elif code == 0x98:  # readonly buffer: all of ours are
            pass
        elif code == ord("c"):
            stack.append(_function(self.line(), self.line()))
        elif code == 0x93:
            stack.append(_function(*self.pop(2)))
        elif code == ord("R"):
            stack.append(_applied(*self.pop(2)))
        elif code == ord("b"):
            (state,) = self.pop(1)
            _build(stack[-1], state)
        else:
            raise ValueError(f"the instruction {code:#04x} at byte {self.position - 1}")

    def pop(self, count: int) -> list[Any]:
        items = self.stack[len(self.stack) - count :] if count else []
        if len(items) != count or any(item is _MARK for item in items):
            raise ValueError("a value is asked for that is not there")
        del self.stack[len(self.stack) - count :]
        return items

    def pop_to_mark(self) -> list[Any]:
        start = len(self.stack) - 1
        while start >= 0 and self.stack[start] is not _MARK:
            start -= 1
        if start < 0:
            raise ValueError("an end without a beginning")
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"items for a {type(self.stack[-1]).__name__}")
        return self.stack[-1]


def _function(module: Any, name: Any) -> _Function:
    known = _FUNCTIONS.get((module, name)) if isinstance(name, str) else None
    if known is None:
        raise ValueError(f"it asks for {str(module)[:60]}.{str(name)[:60]}")
    return _Function(known)


def _applied(function: Any, arguments: Any) -> Any:
    """What a recognised function makes of its arguments."""
    if not isinstance(function, _Function) or not isinstance(arguments, tuple):
        raise ValueError("a call of something that is no function")
    if function.name == "reconstruct":
        return _Array()
    if function.name == "dtype":
        return _Dtype(arguments[0])
    if function.name == "encode" and arguments[1:] == ("latin1",):
        return memoryview(arguments[0].encode("latin1"))
    if function.name == "bytes" and not arguments:
        return memoryview(b"")
    if function.name == "bytes" and len(arguments) == 1 and isinstance(arguments[0], memoryview):
        return arguments[0]
    if function.name == "frombuffer":
        data, dtype, shape, order = arguments
        return _array(shape, dtype, order == "F", data)
    if function.name == "scalar":
        dtype, data = arguments
        return _array((), dtype, False, data)[()]
    raise ValueError(f"a call of {function.name} with {len(arguments)} arguments")


def _build(target: Any, state: Any) -> None:
    """Give an unfinished type or array its state."""
    if isinstance(target, _Dtype):
        order = state[1]
        if order not in ("<", ">", "|", "=") or any(part is not None for part in state[2:5]):
            raise ValueError("a type of numbers that is not plain")
        target.order = order
    elif isinstance(target, _Array) and target.value is None:
        _, shape, dtype, fortran, data = state
        if isinstance(dtype, _Dtype) and dtype.kind in ("O8", "O"):
            if not isinstance(data, list):
                raise ValueError("an array of objects without a list of them")
            target.value = data
        else:
            target.value = _array(shape, dtype, fortran, data)
    else:
        raise ValueError(f"a state for a {type(target).__name__}")


def _array(shape: Any, dtype: Any, fortran: Any, data: Any) -> np.ndarray:
    if not isinstance(dtype, _Dtype) or str(dtype.kind).lstrip("<>|=") not in _KINDS:
        raise ValueError(f"an array of {str(getattr(dtype, 'kind', dtype))[:40]}")
    order = "<" if dtype.order == "=" else dtype.order
    plain = np.dtype(order + str(dtype.kind).lstrip("<>|="))
    if not isinstance(shape, tuple) or len(shape) > 8 or not isinstance(data, memoryview):
        raise ValueError("an array without a shape or its bytes")
    count = 1
    for side in shape:
        if isinstance(side, bool) or not isinstance(side, int) or side < 0:
            raise ValueError(f"an array of shape {str(shape)[:60]}")
        count *= side
    if count * plain.itemsize != len(data):
        raise ValueError(f"an array of shape {str(shape)[:60]} with {len(data)} bytes")
    return np.ndarray(shape, plain, data, order="F" if fortran else "C")


def _finished(value: Any, done: dict[int, Any]) -> Any:
    """The same value with finished arrays in place; what is shared is finished once."""
    if isinstance(value, _Function | _Dtype | _Mark):
        raise ValueError("a function or type as a value")
    if not isinstance(value, _Array | dict | list | tuple):
        return value
    if id(value) in done:
        if done[id(value)] is _MARK:
            raise ValueError("a container that holds itself")
        return done[id(value)]
    done[id(value)] = _MARK
    if isinstance(value, _Array):
        result = _finished(value.value, done)
    elif isinstance(value, dict):
        result = {key: _finished(item, done) for key, item in value.items()}
    else:
        result = type(value)(_finished(item, done) for item in value)
    done[id(value)] = result
    return result
