import inspect
import re

import pytest

from pplx_vectorstore import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
]


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_is_drawn_under_its_parent(error):
    """The tree in the module's docstring is the tree of the classes."""
    parents = {}
    path = []
    for line in errors.__doc__.splitlines():
        drawn = re.match(r"^    ([│ ├└─]*)(\w+Error)(?: \((\w+)\))?", line)
        if drawn:
            depth = len(drawn[1]) // 4
            path[depth:] = [drawn[2]]
            parents[drawn[2]] = (path[depth - 1] if depth else "Exception", drawn[3])
    assert set(parents) == {one.__name__ for one in CLASSES}
    parent, builtin = parents[error.__name__]
    assert [base.__name__ for base in error.__bases__] == [parent, *([builtin] if builtin else [])]


def test_all_can_be_caught_at_once():
    assert all(issubclass(error, errors.PplxVectorStoreError) for error in CLASSES)


def test_missing_extra_says_what_to_install():
    error = errors.MissingExtraError("a local model", "torch")
    assert isinstance(error, ImportError)
    assert error.extra == "torch"
    assert "a local model" in str(error)
    assert "pip install 'pplx-vectorstore[torch]'" in str(error)
