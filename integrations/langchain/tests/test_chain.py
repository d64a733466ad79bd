"""A retriever in a chain, the way people run it: called, awaited, batched, streamed, from several threads."""

import asyncio
import threading

import pytest
from langchain_core.language_models import SimpleChatModel
from langchain_core.messages import AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough

TEXTS = [f"fact number {number}" for number in range(40)]


class Echo(SimpleChatModel):
    """A model that answers with its prompt, word by word where it is streamed."""

    @property
    def _llm_type(self):
        return "echo"

    def _call(self, messages, stop=None, run_manager=None, **kwargs):
        return messages[-1].content

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        for word in messages[-1].content.split(" "):
            yield ChatGenerationChunk(message=AIMessageChunk(content=word + " "))


@pytest.fixture
def chain(open_store):
    store = open_store()
    store.add_texts(TEXTS, [{"number": number} for number in range(len(TEXTS))])
    retriever = store.as_retriever(k=1)
    prompt = ChatPromptTemplate.from_template("{question} <- {context}")
    context = retriever | (lambda documents: documents[0].page_content)
    return {"context": context, "question": RunnablePassthrough()} | prompt | Echo() | StrOutputParser()


def answers(texts):
    return [f"{text} <- {text}" for text in texts]


def test_a_chain_from_several_threads(chain):
    errors, start = [], threading.Barrier(4, timeout=60)

    def check(work):
        try:
            start.wait()
            for _ in range(3):
                work()
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            errors.append(error)

    def invoke():
        assert [chain.invoke(text) for text in TEXTS] == answers(TEXTS)

    def batch():
        assert chain.batch(TEXTS, {"max_concurrency": 4}) == answers(TEXTS)

    def stream():
        assert ["".join(chain.stream(text)).strip() for text in TEXTS] == answers(TEXTS)

    def in_a_loop():
        asyncio.run(awaited())

    async def awaited():
        assert await chain.abatch(TEXTS) == answers(TEXTS)
        streamed = await asyncio.gather(*(joined(text) for text in TEXTS[:10]))
        assert streamed == answers(TEXTS[:10])
        retriever_store = chain.steps[0].steps__["context"].first.vectorstore
        await retriever_store.adisconnect()

    async def joined(text):
        return "".join([part async for part in chain.astream(text)]).strip()

    threads = [threading.Thread(target=check, args=(work,)) for work in (invoke, batch, stream, in_a_loop)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
