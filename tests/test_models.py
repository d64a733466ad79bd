import dataclasses
import re

import pytest

from pplx_vectorstore.models import DEFAULT_MODEL, KNOWN_MODELS, OFFLINE_MODEL, find_spec


@pytest.mark.parametrize(
    ("name", "dimension", "context_weight"),
    [
        ("perplexity-ai/pplx-embed-context-v1-0.6b", 1024, 1.0),
        ("perplexity-ai/pplx-embed-context-v1-4b", 2560, 1.0),
        ("perplexity-ai/pplx-embed-v1-0.6b", 1024, 0.0),
        ("perplexity-ai/pplx-embed-v1-4b", 2560, 0.0),
    ],
)
def test_pplx_models_are_used_as_published(name, dimension, context_weight):
    spec = KNOWN_MODELS[name]
    assert (spec.dimension, spec.min_dimension) == (dimension, 128)
    assert spec.quantizer == "tanh"
    assert spec.separator == "<|endoftext|>"
    assert (spec.query_prefix, spec.document_prefix) == ("", "")
    assert (spec.window_tokens, spec.max_window_tokens) == (4096, 32768)
    assert spec.context_weight == context_weight
    assert not spec.float16


def test_offline_model_is_blended_not_only_late():
    spec = KNOWN_MODELS[OFFLINE_MODEL]
    assert (spec.dimension, spec.window_tokens, spec.max_window_tokens) == (384, 512, 512)
    assert (spec.quantizer, spec.context_weight, spec.separator) == ("norm", 0.3, None)
    assert spec.sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.mark.parametrize("spec", KNOWN_MODELS.values(), ids=lambda spec: spec.name)
def test_every_spec_is_sound(spec):
    assert KNOWN_MODELS[spec.name] is spec
    assert 1 <= spec.min_dimension <= spec.dimension
    assert 1 <= spec.window_tokens <= spec.max_window_tokens
    assert 0 <= spec.context_weight <= 1
    assert spec.sha256 is None or re.fullmatch("[0-9a-f]{64}", spec.sha256)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.dimension = 3


def test_default_model_is_known():
    assert KNOWN_MODELS[DEFAULT_MODEL].context_weight == 1.0


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("pplx-embed-context-v1-0.6b", "perplexity-ai/pplx-embed-context-v1-0.6b"),
        ("PPLX-EMBED-CONTEXT-V1-0.6B", "perplexity-ai/pplx-embed-context-v1-0.6b"),
        ("perplexity-ai/pplx-embed-v1-4b", "perplexity-ai/pplx-embed-v1-4b"),
        ("Perplexity-AI/pplx-embed-v1-4b", "perplexity-ai/pplx-embed-v1-4b"),
        ("all-MiniLM-L6-v2", "all-minilm-l6-v2"),
        ("sentence-transformers/all-MiniLM-L6-v2", "all-minilm-l6-v2"),
        ("somebody/all-MiniLM-L6-v2", None),
        ("somebody/pplx-embed-v1-4b", None),
        ("perplexity-ai/all-MiniLM-L6-v2", None),
        ("pplx-embed", None),
        ("", None),
    ],
)
def test_find_spec(name, found):
    spec = find_spec(name)
    assert (None if spec is None else spec.name) == found
