import datetime

import pytest
from qdrant_client import models as of_client

from pplx_vectorstore.collection import (
    bm25_document,
    own_indexes,
    tenant_index_params,
    text_index_params,
    vector_params,
)
from pplx_vectorstore.filters import build_filter
from pplx_vectorstore.qdrant import models
from pplx_vectorstore.qdrant.conversion import as_clients, as_ours

OURS = [one for one in vars(models).values() if isinstance(one, type) and issubclass(one, models.Model)]
OURS.remove(models.Model)


@pytest.mark.parametrize("ours", OURS, ids=lambda one: one.__name__)
def test_each_has_a_namesake_with_its_fields(ours):
    theirs = getattr(of_client, ours.__name__).model_fields
    assert set(ours.fields) <= set(theirs)
    required = {name for name in ours.fields if theirs[name].is_required()}
    if ours not in (models.CollectionInfo, models.CollectionConfig, models.MatchExcept):  # of answers, ours have less
        assert ours._required | {"type"} & required == required


@pytest.mark.parametrize(
    "enum", [one for one in vars(models).values() if isinstance(one, type) and issubclass(one, models.StrEnum)]
)
def test_values_are_the_clients(enum):
    if enum is not models.StrEnum:
        theirs = getattr(of_client, enum.__name__)
        assert all(one == theirs(one) and hash(one) == hash(theirs(one)) for one in enum)


FILTER = of_client.Filter(
    must=of_client.FieldCondition(key="a", match=of_client.MatchValue(value=True)),
    should=[
        of_client.FieldCondition(key="b", range=of_client.Range(gte=1.5, lt=3)),
        of_client.FieldCondition(
            key="c", range=of_client.DatetimeRange(gt=datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC))
        ),
        of_client.FieldCondition(key="d", match=of_client.MatchExcept(**{"except": ["x", "y"]})),
        of_client.FieldCondition(key="e", values_count=of_client.ValuesCount(gt=1)),
        of_client.FieldCondition(
            key="f", geo_radius=of_client.GeoRadius(center=of_client.GeoPoint(lon=1, lat=2), radius=3)
        ),
        of_client.IsEmptyCondition(is_empty=of_client.PayloadField(key="g")),
        of_client.HasIdCondition(has_id=[1, "3ee3aa32-a8ff-4cd5-8a44-0e2e0e1d0dcd"]),
        of_client.HasVectorCondition(has_vector="codes"),
        of_client.SliceCondition(slice=of_client.Slice(index=0, total=2)),
    ],
    min_should=of_client.MinShould(
        conditions=[of_client.FieldCondition(key="h", match=of_client.MatchText(text="w"))], min_count=1
    ),
    must_not=[
        of_client.NestedCondition(
            nested=of_client.Nested(key="list", filter=of_client.Filter(must=[of_client.Filter(should=[])]))
        )
    ],
)


def test_a_callers_filter_comes_back_as_it_was():
    ours = as_ours(FILTER)
    assert isinstance(ours.must, models.FieldCondition)
    assert isinstance(ours.must_not[0].nested.filter, models.Filter)
    assert as_ours(ours) is ours
    assert build_filter(FILTER) == ours
    assert as_clients(ours) == FILTER
    assert as_clients(FILTER) is FILTER


@pytest.mark.parametrize(
    "ours",
    [
        vector_params(8)["codes"],
        vector_params(8, memory_placement=False)["codes"],
        tenant_index_params(),
        text_index_params(),
        *(schema for schema in own_indexes(without_links=True).values()),
        bm25_document("words", average_words=3.0, unstemmed=True),
    ],
)
def test_what_we_send_is_what_the_client_takes(ours):
    theirs = as_clients(ours)
    assert type(theirs) is getattr(of_client, type(ours).__name__)
    type(theirs).model_validate(theirs.model_dump(exclude_none=True))  # whole, and of the right types
    assert as_ours(theirs) == ours
    assert theirs.model_dump(mode="json", exclude_none=True) == ours.model_dump(exclude_none=True)


def test_lists_and_dicts_are_changed_within_and_numbers_left_alone():
    numbers, text = [1, 2, 3], models.Document(text="a", model="qdrant/bm25")
    changed = as_clients({"codes": numbers, "bm25": text})
    assert changed["codes"] is numbers
    assert isinstance(changed["bm25"], of_client.Document)
    assert as_clients(numbers) is numbers
    assert as_clients(None) is None


def test_a_field_that_there_is_not_and_one_that_is_missing_are_refused():
    with pytest.raises(TypeError, match="Filter got no field 'most'"):
        models.Filter(most=[])
    with pytest.raises(TypeError, match="MatchValue got no value for 'value'"):
        models.MatchValue()
    with pytest.raises(TypeError, match="no field 'filters'"):
        models.QueryRequest().model_copy(update={"filters": None})
