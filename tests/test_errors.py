import copy
import inspect
import pickle
import re

import pytest

from pplx_vectorstore import SyncReport, Usage, errors

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


@pytest.mark.parametrize("kind", CLASSES, ids=lambda error: error.__name__)
def test_errors_survive_the_way_to_another_process(kind):
    error = kind("a local model", "torch") if kind is errors.MissingExtraError else kind("what came")
    error.report = SyncReport(documents=3, usage=Usage(tokens=7))
    error.add_note("Written before this: 3 documents")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is kind
        assert (str(again), again.args) == (str(error), error.args)
        assert again.report == error.report
        assert again.__notes__ == error.__notes__
        assert vars(again) == vars(error)
