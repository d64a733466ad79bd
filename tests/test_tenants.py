"""Tenants of one collection see, count, overwrite and delete nothing of each other, whatever is called.

The oracle is a dict: what each tenant wrote, and nothing else.
"""

import collections
import dataclasses
import json
import random

import numpy as np
import pyarrow.parquet
import pytest
from qdrant_client import QdrantClient, models

from pplx_vectorstore import AsyncVectorStore, Chunk, Document, VectorStore
from pplx_vectorstore.coroutines import run_now
from pplx_vectorstore.engines.calls import BlockingCalls
from pplx_vectorstore.engines.edge import EdgeClient
from pplx_vectorstore.engines.retrying import Retries
from pplx_vectorstore.errors import InvalidInputError, SchemaMismatchError
from pplx_vectorstore.operations.prepare import list_tenants
from pplx_vectorstore.points import derive_point_id, read_codes

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning")

DIMENSION = 64
EVERYTHING = 1000  # more points than any test writes
COLLECTION = "shared"
TENANTS = ("acme", "acme.eu", 'Ünïon "7" ß')

DOCUMENT_IDS = ("a", 'd "e"', "ü/文", "9dd4e461268c8034f5c8564e155c67a6")
TEXTS = ("red apple", "green apple pie", "blue sky", "the sky is red", "pie", "a quiet sea", " ", "sea, sky, pie")
QUESTIONS = ("red apple", "sky", "pie by the sea", "something else")


@pytest.fixture
def open_tenant(engine, new_store, folder, hash_encoder):
    """Open stores of one collection: ``open_tenant("acme", **options)``."""
    encoder = hash_encoder(DIMENSION)
    if engine in ("edge", "memory"):
        # The embedded engine locks a collection, so the stores share a client.
        client = EdgeClient(folder / "index") if engine == "edge" else QdrantClient(":memory:")
        yield lambda tenant, **options: VectorStore(client, COLLECTION, encoder=encoder, tenant=tenant, **options)
        client.close()
    else:
        yield lambda tenant, **options: new_store(
            DIMENSION, encoder=encoder, collection=COLLECTION, tenant=tenant, **options
        )


# --- any interleaving of everything ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Stored:
    """What is known of a stored chunk; `version` tells documents apart in which anything differs."""

    text: str
    document_id: str
    chunk_index: int
    chunk_count: int
    metadata: str
    codes: bytes
    own_id: str | None
    version: str
    content: str

    @property
    def key(self):
        return self.own_id or (self.document_id, self.chunk_index)

    def id(self, tenant):
        return self.own_id or derive_point_id(self.document_id, self.chunk_index, tenant)


class Recorded:
    """A store, and the names of the methods that were called."""

    def __init__(self, store, called):
        self.store, self.called = store, called

    def __getattr__(self, name):
        self.called[name] += 1
        return getattr(self.store, name)


class Interleaving:
    """Calls methods of the tenants' stores in random order; each ``do_<method>`` compares with the model."""

    def __init__(self, stores, seed, folder, encoder, read_points):
        self.called = collections.Counter()
        self.stores = {tenant: Recorded(store, self.called) for tenant, store in stores.items()}
        self.model = {tenant: {} for tenant in stores}
        self.read = lambda: read_points(next(iter(stores.values())), with_vectors=True)
        self.random = random.Random(seed)
        self.folder, self.encoder = folder, encoder
        self.written = []  # documents of all tenants
        self.exports = []  # (tenant, path, content)
        self.log = []

    def run(self, rounds):
        for _ in range(rounds):
            for verb in self.random.sample(VERBS, len(VERBS)):
                tenant = self.random.choice(list(self.stores))
                self.log.append((verb, tenant))
                getattr(self, f"do_{verb}")(tenant, self.stores[tenant])
                self.check()

    def check(self):
        """The collection holds what the tenants wrote, each point once, and nothing else."""
        found = {}
        points = self.read()
        for point in points:
            payload = point.payload
            tenant = payload["tenant"]
            own_id = payload.get("id")
            chunk_id = own_id or point.id
            codes = read_codes(point.vector, point.payload, DIMENSION, self.encoder.fingerprint.squared_norm)
            found[tenant, chunk_id] = (
                *(payload[name] for name in COMPARED),
                as_json(payload["metadata"]),
                codes.tobytes(),
            )
        expected = {
            (tenant, stored.id(tenant)): (
                *(getattr(stored, name) for name in COMPARED),
                stored.metadata,
                stored.codes,
            )
            for tenant, content in self.model.items()
            for stored in content.values()
        }
        assert found == expected, self.log
        assert len(points) == len(expected)
        for tenant, store in self.stores.items():
            assert store.store.count() == len(self.model[tenant])

    # --- what is written

    def make_documents(self):
        documents = {}
        for document_id in self.random.sample(DOCUMENT_IDS, self.random.randint(1, 3)):
            old = [document for document in self.written if document.id == document_id]
            # Often the very same document that some tenant has written before.
            documents[document_id] = (
                self.random.choice(old) if old and self.random.random() < 0.4 else self.make_document(document_id)
            )
        self.written += documents.values()
        return list(documents.values())

    def make_document(self, document_id):
        draw = self.random
        own_ids = draw.random() < 0.4
        chunks = [
            Chunk(
                text=draw.choice(TEXTS),
                id=f"own {document_id} {i}" if own_ids else None,
                metadata={"n": i} if draw.random() < 0.3 else {},
            )
            for i in range(draw.randint(0, 4))
        ]
        metadata = {"lang": draw.choice(["en", "de"]), "tenant": draw.choice(TENANTS)}
        return Document(id=document_id, chunks=chunks, metadata=metadata)

    def chunks_of(self, document):
        """What a store should hold of a document."""
        chunks = document.chunks
        (codes,) = self.encoder.encode_documents([[chunk.text for chunk in chunks]])
        content = repr((document.id, [(chunk.text, chunk.id) for chunk in chunks]))
        version = content + as_json([document.metadata, [chunk.metadata for chunk in chunks]])
        return [
            Stored(
                text=chunk.text,
                document_id=document.id,
                chunk_index=i,
                chunk_count=len(chunks),
                metadata=as_json({**document.metadata, **chunk.metadata}),
                codes=codes[i].tobytes(),
                own_id=chunk.id,
                version=version,
                content=content,
            )
            for i, chunk in enumerate(chunks)
        ]

    def of_document(self, tenant, document_id):
        return [stored for stored in self.model[tenant].values() if stored.document_id == document_id]

    def forget(self, tenant, is_gone):
        self.model[tenant] = {key: stored for key, stored in self.model[tenant].items() if not is_gone(stored)}

    def replace(self, tenant, documents):
        replaced = {document.id for document in documents}
        self.forget(tenant, lambda stored: stored.document_id in replaced)
        for document in documents:
            self.model[tenant] |= {stored.key: stored for stored in self.chunks_of(document)}

    def transfer(self, content, tenant):
        """As the model of copy and import: chunks of the same version stay, those of others go."""
        versions = collections.defaultdict(set)
        for stored in content.values():
            versions[stored.document_id].add(stored.version)
        self.forget(
            tenant,
            lambda stored: stored.document_id in versions and stored.version not in versions[stored.document_id],
        )
        self.model[tenant] |= content

    def do_add(self, tenant, store):
        documents = self.make_documents()
        report = store.add(documents)
        assert report.documents == len(documents)
        assert report.chunks == sum(len(document.chunks) for document in documents)
        self.replace(tenant, documents)

    def do_sync(self, tenant, store):
        documents = self.make_documents()
        delete_missing = self.random.random() < 0.3
        expected = collections.Counter()
        for document in documents:
            before, after = self.of_document(tenant, document.id), self.chunks_of(document)
            if len(before) != len(after) or {one.content for one in before} - {one.content for one in after}:
                expected["documents"] += 1
                expected["new_documents"] += not before
            elif {one.version for one in before} - {one.version for one in after}:
                expected["relabelled_documents"] += 1
            else:
                expected["unchanged_documents"] += 1
        missing = {stored.document_id for stored in self.model[tenant].values()} - {one.id for one in documents}
        expected["deleted_documents"] = len(missing) if delete_missing else 0
        report = store.sync(documents, delete_missing=delete_missing)
        for name in ("documents", "new_documents", "relabelled_documents", "unchanged_documents", "deleted_documents"):
            assert getattr(report, name) == expected[name], (name, self.log)
        self.replace(tenant, documents)
        if delete_missing:
            self.forget(tenant, lambda stored: stored.document_id in missing)

    def do_delete(self, tenant, store):
        by = self.random.choice(["ids", "document_ids", "filter", "filter"])
        if by == "ids":
            ids = self.some_ids(self.random.randint(0, 4))
            gone = {key for key, stored in self.model[tenant].items() if stored.id(tenant) in ids}
            n = store.delete(ids=ids)
        elif by == "document_ids":
            ids = self.random.sample(DOCUMENT_IDS, self.random.randint(0, 2))
            gone = {key for key, stored in self.model[tenant].items() if stored.document_id in ids}
            n = store.delete(document_ids=ids)
        else:
            given, matches = self.some_filter(tenant)
            if given is None:
                return
            gone = {key for key, stored in self.model[tenant].items() if matches(stored)}
            n = store.delete(filter=given)
        assert n == len(gone)
        self.forget(tenant, lambda stored: stored.key in gone)

    def do_export_parquet(self, tenant, store):
        path = self.folder / f"{len(self.exports)}.parquet"
        content = dict(self.model[tenant])
        assert store.export_parquet(path) == len(content)
        rows = pyarrow.parquet.read_table(path).to_pylist()
        assert {
            (row["id"], row["document_id"], row["chunk_index"], row["text"], as_json(json.loads(row["metadata"])))
            for row in rows
        } == {(one.own_id, one.document_id, one.chunk_index, one.text, one.metadata) for one in content.values()}
        assert len(rows) == len(content)
        self.exports.append((tenant, path, content))

    def do_import_parquet(self, tenant, store):
        others = [export for export in self.exports if export[0] != tenant]
        if not others:
            other = self.random.choice([one for one in self.stores if one != tenant])
            self.do_export_parquet(other, self.stores[other])
            others = self.exports[-1:]
        _, path, content = self.random.choice(others)
        assert store.import_parquet(path) == len(content)
        self.transfer(content, tenant)

    def do_copy_to(self, tenant, store):
        other = self.random.choice([one for one in self.stores if one != tenant])
        assert store.copy_to(self.stores[other].store) == len(self.model[tenant])
        self.transfer(self.model[tenant], other)

    def do_bulk_load(self, tenant, store):
        with store.bulk_load():
            self.do_add(tenant, store)

    def do_optimize(self, tenant, store):
        store.optimize()

    # --- what is read

    def some_ids(self, n):
        """Ids that some tenant's chunks have, perhaps this one's."""
        known = [stored.id(tenant) for tenant, content in self.model.items() for stored in content.values()]
        derived = [derive_point_id(id_, i, tenant) for id_ in DOCUMENT_IDS for i in range(4) for tenant in self.stores]
        return [self.random.choice([*known, *known, *derived, "own a 0", "nobody's"]) for _ in range(n)]

    def some_filter(self, tenant):
        """A filter, and what it matches among the tenant's own chunks: also ones that ask for the others'."""
        other = self.random.choice([one for one in self.stores if one != tenant])
        field = lambda value: models.FieldCondition(key="tenant", match=models.MatchValue(value=value))  # noqa: E731
        everything = models.HasIdCondition(has_id=[point.id for point in self.read()])
        return self.random.choice(
            [
                (None, lambda stored: True),
                ({"lang": "en"}, lambda stored: '"lang": "en"' in stored.metadata),
                ({"n": {"$gte": 1, "$lt": 3}}, lambda stored: json.loads(stored.metadata).get("n") in (1, 2)),
                ({"tenant": other}, lambda stored: json.loads(stored.metadata)["tenant"] == other),
                ({"lang": {"$ne": "en"}}, lambda stored: '"lang": "en"' not in stored.metadata),
                (models.Filter(must=[field(other)]), lambda stored: False),
                (models.Filter(should=[field(other), field(tenant)]), lambda stored: True),
                (models.Filter(must_not=[field(tenant)]), lambda stored: False),
                (models.Filter(must_not=[field(other)]), lambda stored: True),
                (models.Filter(should=[everything]), lambda stored: True),
                (
                    models.Filter(min_should=models.MinShould(conditions=[field(other), everything], min_count=1)),
                    lambda stored: True,
                ),
            ]
        )

    def assert_is(self, tenant, chunk):
        """A chunk that was returned is one of the tenant's own."""
        stored = self.model[tenant].get(chunk.id, self.model[tenant].get((chunk.document_id, chunk.chunk_index)))
        assert stored is not None, (chunk, self.log)
        assert chunk.id == stored.id(tenant)
        assert [getattr(chunk, name) for name in COMPARED] == [getattr(stored, name) for name in COMPARED]
        assert as_json(chunk.metadata) == stored.metadata
        return stored

    def do_search(self, tenant, store):
        self.search(tenant, lambda questions, **options: [store.search(questions[0], **options)], 1)

    def do_search_batch(self, tenant, store):
        self.search(tenant, store.search_batch, self.random.randint(1, 3))

    def search(self, tenant, search_batch, n):
        draw = self.random
        given, matches = self.some_filter(tenant)
        questions = draw.choices(QUESTIONS, k=n)
        k = draw.choice([1, 3, EVERYTHING])
        options = {
            "hybrid": draw.random() < 0.4,
            "group_by_document": draw.choice([False, False, 1, 2]),
            "diversity": draw.choice([None, None, 0.0, 0.5]),
            "score_threshold": draw.choice([None, None, 0.0]),
            "context": draw.choice([0, 0, 1]),
        }
        all_hits = search_batch(questions, k=k, candidates=EVERYTHING, filter=given, **options)
        assert len(all_hits) == n
        for question, hits in zip(questions, all_hits, strict=True):
            scores = {
                key: score
                for key, score in self.scores(tenant, question).items()
                if matches(self.model[tenant][key])
                and (options["hybrid"] or options["score_threshold"] is None or score >= options["score_threshold"])
            }
            self.compare_hits(tenant, hits, scores, k, options)

    def compare_hits(self, tenant, hits, scores, k, options):
        own = [self.assert_is(tenant, hit) for hit in hits]
        assert len({stored.key for stored in own}) == len(own)
        assert {stored.key for stored in own} <= scores.keys()
        if not options["hybrid"]:
            np.testing.assert_allclose(
                [hit.score for hit in hits], [scores[stored.key] for stored in own], rtol=0, atol=1e-6
            )
        most = int(options["group_by_document"])
        of_documents = collections.defaultdict(list)
        for key, score in sorted(scores.items(), key=lambda item: -item[1]):
            of_documents[self.model[tenant][key].document_id].append(score)
        if most:
            assert len({hit.document_id for hit in hits}) == min(k, len(of_documents))
            if not options["hybrid"] and options["diversity"] is None:
                best = sorted((some[:most] for some in of_documents.values()), key=lambda some: -some[0])[:k]
                np.testing.assert_allclose(
                    [hit.score for hit in hits], [one for some in best for one in some], atol=1e-6
                )
        else:
            assert len(hits) == min(k, len(scores))
            if not options["hybrid"] and options["diversity"] is None:
                expected = sorted(scores.values(), reverse=True)[:k]
                np.testing.assert_allclose([hit.score for hit in hits], expected, rtol=0, atol=1e-6)
        for hit in hits if options["context"] else ():
            around = {stored.chunk_index: stored.text for stored in self.of_document(tenant, hit.document_id)}
            near = (hit.chunk_index - 1, hit.chunk_index, hit.chunk_index + 1)
            assert hit.context == "\n\n".join(around[i] for i in near if i in around)

    def scores(self, tenant, question):
        """The cosine of each of the tenant's chunks that can be found."""
        query = self.encoder.encode_queries([question])[0].astype(float)
        scores = {}
        for key, stored in self.model[tenant].items():
            codes = np.frombuffer(stored.codes, np.int8).astype(float)
            if codes.any():
                scores[key] = float(query @ codes / np.linalg.norm(query) / np.linalg.norm(codes))
        return scores

    def do_explain(self, tenant, store):
        given, matches = self.some_filter(tenant)
        question = self.random.choice(QUESTIONS)
        k, candidates = self.random.choice([(1, 1), (2, 3), (EVERYTHING, EVERYTHING)])
        explanation = store.explain(question, k=k, candidates=candidates, filter=given)
        scores = {
            key: score for key, score in self.scores(tenant, question).items() if matches(self.model[tenant][key])
        }
        returned = [self.assert_is(tenant, one.hit).key for one in explanation.hits]
        missed = [self.assert_is(tenant, hit).key for hit in explanation.missed]
        assert len(returned) == min(k, len(scores))
        assert {*returned, *missed} <= scores.keys()
        for one in explanation.hits:
            for rank in (one.hamming_rank, one.exact_rank):
                assert rank is None or rank <= len(scores)
        if candidates == EVERYTHING:
            assert (explanation.recall, explanation.missed) == (1.0, ())

    def do_get(self, tenant, store):
        ids = self.some_ids(self.random.randint(0, 12))
        by_id = {stored.id(tenant): stored for stored in self.model[tenant].values()}
        with_codes = self.random.random() < 0.5
        chunks = store.get(ids, with_codes=with_codes)
        assert [chunk.id for chunk in chunks] == [id_ for id_ in ids if id_ in by_id]
        for chunk in chunks:
            stored = self.assert_is(tenant, chunk)
            assert chunk.codes is None if not with_codes else chunk.codes.tobytes() == stored.codes

    def do_count(self, tenant, store):
        given, matches = self.some_filter(tenant)
        assert store.count(given) == sum(map(matches, self.model[tenant].values())), given

    def do_chunks(self, tenant, store):
        given, matches = self.some_filter(tenant)
        expected = {stored.id(tenant) for stored in self.model[tenant].values() if matches(stored)}
        found = list(store.chunks(given))
        assert sorted(chunk.id for chunk in found) == sorted(expected), given
        for chunk in found:
            self.assert_is(tenant, chunk)

    def do_documents(self, tenant, store):
        chunks = collections.Counter(stored.document_id for stored in self.model[tenant].values())
        counts = {stored.document_id: stored.chunk_count for stored in self.model[tenant].values()}
        listed = [(document.id, document.chunks, document.chunk_count) for document in store.documents()]
        assert sorted(listed) == sorted((id_, n, counts[id_]) for id_, n in chunks.items())


COMPARED = ("text", "document_id", "chunk_index", "chunk_count")
VERBS = sorted(name.removeprefix("do_") for name in dir(Interleaving) if name.startswith("do_"))
# What touches no points: opening and closing, and what is known of the collection.
OTHERS = {"open", "connect", "close", "fingerprint", "tenant"}


def as_json(value):
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=dict)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_no_interleaving_touches_another_tenant(open_tenant, tmp_path, hash_encoder, read_points, seed):
    stores = {tenant: open_tenant(tenant) for tenant in TENANTS}
    interleaving = Interleaving(stores, seed, tmp_path, hash_encoder(DIMENSION), read_points)
    interleaving.run(rounds=6)
    assert interleaving.called.keys() == set(VERBS)


@pytest.mark.parametrize("kind", [VectorStore, AsyncVectorStore])
def test_the_interleavings_cover_every_public_method(kind):
    """A new method must be added above, or, where it touches no points, to OTHERS."""
    public = {name for name in dir(kind) if not name.startswith("_")}
    assert public == {*VERBS, *OTHERS}
    assert not OTHERS & set(VERBS)


# --- which tenant ------------------------------------------------------------------------------------


def test_a_tenants_collection_needs_a_tenant(open_tenant):
    open_tenant("acme").add([Document(id="d", chunks=["text"])])
    with pytest.raises(SchemaMismatchError, match=r"collection '[\w-]*shared' holds tenants; say which"):
        open_tenant(None)
    assert open_tenant("acme").count() == 1


def test_a_plain_collection_takes_no_tenant(open_tenant):
    open_tenant(None).add([Document(id="d", chunks=["text"])])
    with pytest.raises(SchemaMismatchError, match="was created without tenants, so tenant 'acme' cannot be kept apart"):
        open_tenant("acme")
    plain = open_tenant(None)
    assert (plain.tenant, plain.count()) == (None, 1)
    (chunk,) = plain.get([derive_point_id("d", 0)])
    assert chunk.text == "text"


@pytest.mark.parametrize("tenant", ["", 5, True, b"acme", ["acme"], "\ud800", "a\udfffb"], ids=repr)
def test_what_is_no_name_is_refused_before_anything_is_created(open_tenant, tenant):
    with pytest.raises(InvalidInputError, match="tenant must be a non-empty str of valid Unicode or None, not "):
        open_tenant(tenant)
    assert open_tenant(None).count() == 0  # a collection of the tenant's would refuse this


NAMES = [
    "a",
    "A",
    " a",
    " ",
    "\n",
    "\t\x00\x7f",
    "a.b",
    "a[]",
    'quo"te',
    "back\\slash",
    "*",
    "0",
    "é",
    "e\u0301",
    "ß",
    "ss",
    "文",
    "🦉",
    "6e1f0a1c-6f4e-5d0b-9a55-70706c785f76",
    "6E1F0A1C-6F4E-5D0B-9A55-70706C785F76",
    "tenant",
    "x" * 2000,
    "x" * 2001,
]


@pytest.mark.parametrize("engine", ["edge", "memory", "http"], indirect=True)
def test_names_that_look_alike_are_told_apart(open_tenant, read_points):
    stores = {name: open_tenant(name) for name in NAMES}
    for name, store in stores.items():
        assert store.tenant == name
        store.add([Document(id="d", chunks=[Chunk(text="the same text", id="own"), "more"], metadata={"of": name})])
    points = read_points(store)
    assert len({point.id for point in points}) == len(points) == 2 * len(NAMES)
    for name, store in stores.items():
        hits = store.search("the same text", k=10, candidates=EVERYTHING, context=1)
        assert [hit.metadata["of"] for hit in hits] == [name, name]
        assert [chunk.metadata["of"] for chunk in store.get(["own", derive_point_id("d", 1, name)])] == [name, name]
    calls = BlockingCalls(store._client, Retries(where=None))
    assert run_now(list_tenants(calls, COLLECTION)) == sorted(NAMES)
    for name in NAMES[::2]:
        assert stores[name].delete(document_ids=["d"]) == 2
    assert [store.count() for store in stores.values()] == [2 * (i % 2) for i in range(len(NAMES))]


@pytest.mark.parametrize(
    "engine",
    ["edge", "http", *(pytest.param(name, marks=pytest.mark.slow) for name in ("async", "grpc"))],
    indirect=True,
)
def test_words_are_as_rare_as_among_the_tenants_own(open_tenant, folder, hash_encoder):
    """Else a score would tell something of the others' texts."""
    documents = [Document(id=f"d{i}", chunks=[f"{text} {i}" for text in TEXTS if text.strip()]) for i in range(8)]
    first, second = open_tenant("first"), open_tenant("second")
    options = {"hybrid": True, "k": 100, "candidates": 100}

    def found(store):
        return [
            {
                (hit.document_id, hit.chunk_index): hit.score
                for hit in store.search(question, lexical_weight=1, **options)
            }
            for question in ("sky apple 3", "quiet")
        ]

    with VectorStore.open(folder / "alone", encoder=hash_encoder(DIMENSION)) as alone:
        alone.add(documents)
        first.add(documents)
        expected = found(alone)
        assert found(first) == [pytest.approx(scores, rel=1e-5) for scores in expected]
        second.add(Document(id=f"d{i}", chunks=["quiet sky"] * 3) for i in range(50))
        # How long texts are on average is still counted among all.
        assert [scores.keys() for scores in found(first)] == [scores.keys() for scores in expected]
        assert found(first) == [pytest.approx(scores, rel=0.2) for scores in expected]
        assert len(first.search("sky", **options)) == len(alone.search("sky", **options))


@pytest.mark.parametrize("engine", ["http", "async"], indirect=True)
def test_the_engine_is_told_to_keep_a_tenants_points_together(open_tenant, server):
    sent = []
    answer = server.answer

    def record(method, path, body):
        sent.append((method, path, json.loads(body) if body else None))
        return answer(method, path, body)

    server.answer = record
    open_tenant("acme")
    indexes = {body["field_name"]: body["field_schema"] for _, path, body in sent if path.endswith("/index")}
    assert indexes["tenant"] == {"type": "keyword", "is_tenant": True}
    sent.clear()
    open_tenant("another")  # of the same collection
    assert {method for method, _, _ in sent} == {"GET"}


@pytest.mark.parametrize("engine", ["edge"], indirect=True)
def test_the_embedded_engine_too(open_tenant, folder):
    open_tenant("acme")
    (shard,) = folder.glob(f"index/{COLLECTION}/shard")
    assert any(b"is_tenant" in path.read_bytes() for path in shard.rglob("*") if path.is_file())
