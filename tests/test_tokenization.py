import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tokenizers.normalizers import NFC

from pplx_vectorstore.errors import InvalidDocumentError, ModelFileError
from pplx_vectorstore.tokenization import ChunkTokenizer

# Among all characters, lone surrogates would hardly ever be drawn.
ANY_TEXT = st.lists(st.one_of(st.characters(), st.sampled_from("\ud800\udbff\udc00\udfff"))).map("".join)


@pytest.fixture(scope="module")
def pplx_tokenizer(pplx_checkpoint):
    return ChunkTokenizer.from_folder(pplx_checkpoint)


@pytest.fixture(scope="module")
def minilm_tokenizer(minilm_folder):
    return ChunkTokenizer.from_folder(minilm_folder)


class TestByteLevel:
    """The pplx models' tokenizer: every text can be decoded from its ids."""

    def test_adds_nothing(self, pplx_tokenizer):
        assert pplx_tokenizer.prefix_ids.tolist() == pplx_tokenizer.suffix_ids.tolist() == []
        assert pplx_tokenizer.prefix_ids.dtype == np.int64

    def test_special_token_in_text_stays_text(self, pplx_tokenizer):
        separator = pplx_tokenizer.token_id("<|endoftext|>")
        for text in ["<|endoftext|>", "a<|endoftext|>b", " <|endoftext|><|endoftext|>"]:
            (ids,) = pplx_tokenizer.encode([text])
            assert separator not in ids
            assert pplx_tokenizer.tokenizer.decode(ids.tolist()) == text

    @given(text=ANY_TEXT)
    def test_loses_nothing(self, pplx_tokenizer, text):
        (ids,) = pplx_tokenizer.encode([text])
        assert ids.dtype == np.int64
        if not text.strip():
            assert len(ids) == 0
        else:
            clean = "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
            decoded = pplx_tokenizer.tokenizer.decode(ids.tolist(), skip_special_tokens=False)
            assert decoded == NFC().normalize_str(clean)  # Python's tables may be of another Unicode version


class TestMiniLM:
    def test_frame_is_taken_from_the_tokenizer(self, minilm_tokenizer):
        assert minilm_tokenizer.prefix_ids.tolist() == [minilm_tokenizer.token_id("[CLS]")]
        assert minilm_tokenizer.suffix_ids.tolist() == [minilm_tokenizer.token_id("[SEP]")]

    def test_published_truncation_and_padding_are_off(self, minilm_tokenizer, minilm_folder):
        published = Tokenizer.from_file(str(minilm_folder / "tokenizer.json"))
        assert published.truncation["max_length"] == 128
        assert published.padding
        long, short = minilm_tokenizer.encode(["word " * 1000, "word"])
        assert (len(long), len(short)) == (1000, 1)

    @pytest.mark.parametrize("special", ["[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"])
    def test_special_token_in_text_stays_text(self, minilm_tokenizer, special):
        (ids,) = minilm_tokenizer.encode([f"before {special} after"])
        assert minilm_tokenizer.token_id(special) not in ids
        # Not one token but the brackets and the letters within.
        assert len(ids) >= 5


@pytest.mark.parametrize("name", ["pplx_tokenizer", "minilm_tokenizer"])
class TestEncode:
    def test_gives_one_result_per_text_in_order(self, request, name):
        """Also over more texts than are tokenized at once."""
        tokenizer = request.getfixturevalue(name)
        texts = ["" if index % 7 == 0 else f"number {index}" for index in range(1100)]
        results = tokenizer.encode(texts)
        assert len(results) == len(texts)
        for index in [0, 1, 7, 510, 511, 512, 513, 1023, 1024, 1025, 1099]:
            assert results[index].tolist() == tokenizer.encode([texts[index]])[0].tolist()

    @pytest.mark.parametrize("blank", ["", " ", "\n\t ", "\u2003\u3000"])
    def test_blank_text_has_no_tokens(self, request, name, blank):
        assert [len(ids) for ids in request.getfixturevalue(name).encode([blank])] == [0]

    @pytest.mark.parametrize("surrogate", ["\ud800", "a\udfff b", "\udc00\ud800"])
    def test_lone_surrogates_count_as_replacement_characters(self, request, name, surrogate):
        tokenizer = request.getfixturevalue(name)
        clean = "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in surrogate)
        assert tokenizer.encode([surrogate])[0].tolist() == tokenizer.encode([clean])[0].tolist()

    def test_nothing_gives_nothing(self, request, name):
        assert request.getfixturevalue(name).encode([]) == []

    def test_text_must_be_str(self, request, name):
        with pytest.raises(InvalidDocumentError, match="a chunk must be a str, not bytes"):
            request.getfixturevalue(name).encode(["fine", b"bytes"])

    def test_unknown_token_is_named(self, request, name):
        with pytest.raises(ModelFileError, match=r"no token '<\|nothing\|>'"):
            request.getfixturevalue(name).token_id("<|nothing|>")


def test_largest_id(pplx_tokenizer, minilm_tokenizer):
    assert (pplx_tokenizer.largest_id, minilm_tokenizer.largest_id) == (399, 30521)


class TestBrokenTokenizers:
    def test_missing_file(self, tmp_path):
        with pytest.raises(ModelFileError, match=r"holds no tokenizer\.json"):
            ChunkTokenizer.from_folder(tmp_path)

    @pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": 3}'])
    def test_unusable_file(self, tmp_path, content):
        (tmp_path / "tokenizer.json").write_text(content, "utf-8")
        with pytest.raises(ModelFileError, match=r"tokenizer\.json is not a usable tokenizer"):
            ChunkTokenizer.from_folder(tmp_path)

    def test_truncated_file(self, tmp_path, minilm_folder):
        path = tmp_path / "tokenizer.json"
        shutil.copy(minilm_folder / "tokenizer.json", path)
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(ModelFileError, match=r"tokenizer\.json is not a usable tokenizer"):
            ChunkTokenizer.from_folder(tmp_path)

    def test_frame_that_replaces_the_text(self):
        """Every chunk would have no tokens, and the zero vector."""
        words = Tokenizer(models.WordLevel({"a": 0, "[CLS]": 1, "[UNK]": 2}, unk_token="[UNK]"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        words.post_processor = processors.TemplateProcessing(single="[CLS]", special_tokens=[("[CLS]", 1)])
        with pytest.raises(ModelFileError, match="tokenizer"):
            ChunkTokenizer(words)
