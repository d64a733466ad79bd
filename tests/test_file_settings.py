import pytest

from pplx_vectorstore.errors import InvalidInputError
from pplx_vectorstore.file_settings import FileSettings, choose_settings, relative_root


def choose(recorded, *, chunk_tokens=None, encoding=None, text_columns=(), rebuild=False):
    return choose_settings(
        recorded, chunk_tokens=chunk_tokens, encoding=encoding, text_columns=text_columns, rebuild=rebuild
    )


def test_settings_come_back_as_they_were_recorded():
    settings = FileSettings(chunk_tokens=64, encoding="cp1252", text_columns=("a", "b"), root="..")
    assert FileSettings.from_metadata({"other": 1, **settings.to_metadata()}) == settings
    assert FileSettings.from_metadata({"other": 1}) is None
    assert FileSettings.from_metadata(None) is None
    newer = {"pplx_vectorstore_files": {"chunk_tokens": 7, "unknown": 1}}
    assert FileSettings.from_metadata(newer) == FileSettings(chunk_tokens=7)


def test_what_is_not_asked_for_is_as_recorded():
    assert choose(None) == FileSettings()
    assert choose(None, chunk_tokens=64, encoding="Latin-1") == FileSettings(chunk_tokens=64, encoding="iso8859-1")
    recorded = FileSettings(chunk_tokens=64, text_columns=("a",), root="x")
    assert choose(recorded) == choose(recorded, chunk_tokens=64, text_columns=("a",)) == recorded


def test_other_settings_ask_for_a_rebuild():
    recorded = FileSettings(chunk_tokens=64, text_columns=("a",), root="x")
    with pytest.raises(InvalidInputError) as refused:
        choose(recorded, chunk_tokens=128, encoding="utf-8", text_columns=("b", "c"))
    assert str(refused.value).startswith(
        "the index was made with --chunk-tokens 64, and 128 is given; --encoding none, and utf-8 is given; "
        "--text-column a, and b, c is given. Leave that out, or give --rebuild"
    )
    changed = choose(recorded, chunk_tokens=128, rebuild=True)
    assert changed == FileSettings(chunk_tokens=128, text_columns=("a",), root="x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens must be"),
        *(
            ({"encoding": name}, "--encoding must be one of text")
            for name in ("nonsense", "rot13", "base64", "idna", "")
        ),
    ],
)
def test_options_that_cannot_be(options, message):
    with pytest.raises(InvalidInputError, match=message):
        choose(None, **options)


def test_a_root_is_recorded_from_where_the_index_is(tmp_path):
    store = tmp_path.resolve() / "project" / "index"
    assert relative_root(store.parent, store) is None
    assert relative_root(store.parent / "docs", store) == "docs"
    assert relative_root(tmp_path.resolve(), store) == ".."
