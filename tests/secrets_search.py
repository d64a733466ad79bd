"""Looking for a secret in everything that an object refers to."""

import functools
import gc
import traceback
import types

# Programs and their frames: what stood in the variables of a frame when an error was raised cannot be helped.
_NOT_FOLLOWED = (type, types.ModuleType, types.FrameType, types.TracebackType, types.CodeType)
_MOST_OBJECTS = 20_000


def find_secret(value, secret):
    """Find a text in an object and in all that can be reached from it.

    Of an error: its arguments, attributes, notes, cause and context, and what these hold: requests, responses, headers.
    What a C or Rust extension hides from the garbage collector is looked for in its representation.

    Args:
        value: Any object.
        secret: Some text.

    Returns:
        The ways to it, each a list of types; none where it is nowhere.
    """
    needles = (secret, secret.encode())
    found, seen = [], set()
    left = [(value, (type(value).__name__,))]
    while left:
        one, way = left.pop()
        if id(one) in seen or isinstance(one, _NOT_FOLLOWED):
            continue
        seen.add(id(one))
        assert len(seen) < _MOST_OBJECTS, f"half of the program can be reached, by way of {way}"
        if _holds(one, needles):
            found.append(list(way))
        left += [(inner, (*way, type(inner).__name__)) for inner in _referents(one)]
    return found


def _holds(value, needles):
    text, raw = needles
    if isinstance(value, str):
        return text in value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return raw in bytes(value)
    if isinstance(value, BaseException):
        told = [str(value), repr(value), *traceback.format_exception(value)]
        return any(text in one for one in told)
    return False


def _referents(value):
    if isinstance(value, types.FunctionType):  # not its globals
        return [*(value.__closure__ or ()), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    inner = gc.get_referents(value)
    if hasattr(value, "__dict__") and not isinstance(value, types.BuiltinFunctionType):
        inner.append(vars(value))
    return inner
