"""The scheduler against a model of so many tokens a second, on a clock that is moved by hand."""

import random
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pplx_vectorstore.serving.scheduler import LANES, Job, QueueFullError, Scheduler

RATE = 1000.0


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def make(turn_tokens=1024, *, pads=False, **options):
    clock = Clock()
    return Scheduler(turn_tokens, pads=pads, tokens_per_second=RATE, clock=clock, **options), clock


def run(scheduler, clock, lanes=LANES):
    """Run the next batch, at the model's rate; return it and the jobs that it finished."""
    batch = scheduler.poll(lanes)
    clock.now += batch.tokens / RATE
    return batch, scheduler.finish(batch)


def run_all(scheduler, clock):
    """Run until nothing is left; return each job's time of completion."""
    done = {}
    while scheduler.n_waiting:
        for job in run(scheduler, clock)[1]:
            done[job] = clock.now
    return done


@given(
    st.lists(st.lists(st.integers(1, 700), min_size=1, max_size=12), min_size=1, max_size=12),
    st.integers(1, 1500),
    st.booleans(),
)
def test_every_row_comes_once_and_budgets_are_kept(lengths, turn_tokens, pads):
    scheduler, clock = make(turn_tokens, pads=pads)
    jobs = [Job(of, model=i % 2) for i, of in enumerate(lengths)]
    seen = {job: [] for job in jobs}
    for job in jobs:
        scheduler.add(job)
    finished = []
    while (batch := scheduler.poll()) is not None:
        sizes = [lengths[jobs.index(job)][row] for job, rows in batch.parts.items() for row in rows]
        assert (sum(sizes), len(sizes)) == (batch.tokens, batch.size)
        assert len(sizes) == 1 or (len(sizes) * max(sizes) if pads else sum(sizes)) <= turn_tokens
        assert len({job.model for job in batch.parts}) == 1
        assert {job.lane for job in batch.parts} == {batch.lane}
        for job, rows in batch.parts.items():
            seen[job] += rows
        clock.now += 0.01
        finished += scheduler.finish(batch)
    assert [sorted(rows) for rows in seen.values()] == [list(range(len(of))) for of in lengths]
    assert sorted(map(id, finished)) == sorted(map(id, jobs))
    assert scheduler.n_waiting == 0


def test_a_query_waits_for_one_turn_of_documents_at_most():
    scheduler, clock = make()
    for _ in range(8):
        scheduler.add(Job([512] * 100))
    run(scheduler, clock)
    asked = clock.now
    query = Job([12])
    scheduler.add(query)
    assert run_until(query, scheduler, clock) - asked <= (1024 + 12) / RATE


def run_until(job, scheduler, clock):
    while not job.is_done:
        run(scheduler, clock)
    return clock.now


def test_documents_are_not_starved_by_a_flood_of_queries():
    scheduler, clock = make()
    document = Job([512] * 40)
    scheduler.add(document)
    of_documents = total = 0
    while not document.is_done:
        while scheduler.n_waiting < 300:
            scheduler.add(Job([20]))
        batch, _ = run(scheduler, clock)
        total += batch.tokens
        of_documents += batch.tokens if batch.lane == "bulk" else 0
    assert of_documents / total > 0.45


def test_a_small_request_does_not_wait_for_a_large_one():
    scheduler, clock = make()
    large, small = Job([512] * 200), Job([512] * 2)
    scheduler.add(large)
    run(scheduler, clock)
    scheduler.add(small)
    begun = clock.now
    done = run_all(scheduler, clock)
    assert done[small] - begun <= 3 * 1024 / RATE
    assert done[large] == max(done.values())


def test_equal_requests_are_done_at_nearly_the_same_time():
    scheduler, clock = make()
    jobs = [Job([512] * 20) for _ in range(5)]
    for job in jobs:
        scheduler.add(job)
    done = run_all(scheduler, clock)
    assert max(done.values()) - min(done.values()) <= 5 * 512 / RATE


def test_rows_of_several_requests_share_a_batch():
    scheduler, clock = make(pads=True)
    for _ in range(6):
        scheduler.add(Job([20]))
    batch, finished = run(scheduler, clock)
    assert (batch.size, len(batch.parts), len(finished)) == (6, 6, 6)


def test_rows_of_different_models_do_not():
    scheduler, clock = make()
    for model in "aba":
        scheduler.add(Job([20], model=model))
    assert [run(scheduler, clock)[0].size, run(scheduler, clock)[0].size] == [2, 1]


def test_padding_is_kept_small():
    scheduler, _ = make(4096, pads=True)
    rng = random.Random(1)
    jobs = [[rng.randint(1, 512) for _ in range(100)] for _ in range(20)]
    for lengths in jobs:
        scheduler.add(Job(lengths, payload=lengths))
    padded = 0
    while (batch := scheduler.poll()) is not None:
        padded += batch.size * max(job.payload[row] for job, rows in batch.parts.items() for row in rows)
        scheduler.finish(batch)
    assert padded / sum(map(sum, jobs)) < 1.2


@pytest.mark.parametrize("apart", [False, True])
def test_threads_of_their_own_take_only_their_lane(apart):
    scheduler, _ = make(apart=apart)
    scheduler.add(Job([600]))
    scheduler.add(Job([5]))
    assert scheduler.poll(["short"]).tokens == 5
    assert scheduler.poll(["short"]) is None
    assert scheduler.poll(["bulk"]).tokens == 600


# --- what is taken on ------------------------------------------------------------------------------------


def test_an_idle_server_takes_any_request():
    scheduler, clock = make()
    huge = Job([4096] * 300)
    scheduler.add(huge, patience=0.001)
    with pytest.raises(QueueFullError):
        scheduler.add(Job([600]), patience=0.001)
    run_all(scheduler, clock)
    scheduler.add(Job([4096] * 300), patience=0.001)


def test_a_running_batch_is_not_idle():
    scheduler, _ = make()
    scheduler.add(Job([4096]))
    batch = scheduler.poll()
    with pytest.raises(QueueFullError):
        scheduler.add(Job([1000]), patience=1.0)
    scheduler.finish(batch)
    scheduler.add(Job([1000]), patience=1.0)


def test_the_queue_is_bounded_by_time_and_says_when_to_ask_again():
    scheduler, clock = make()
    for _ in range(int(600 * RATE) // 5120):
        scheduler.add(Job([512] * 10))
    with pytest.raises(QueueFullError) as full:
        scheduler.add(Job([512] * 10))
    assert 1 <= full.value.retry_after <= 60
    for _ in range(full.value.retry_after * int(RATE) // 1024 + 1):
        run(scheduler, clock)
    scheduler.add(Job([512] * 10))


def test_short_patience_bounds_it_sooner():
    scheduler, _ = make()
    scheduler.add(Job([512] * 100))
    scheduler.check(5000, patience=60)
    with pytest.raises(QueueFullError):
        scheduler.check(50_000, patience=60)
    scheduler.check(50_000)  # who says nothing waits


def test_what_is_taken_on_is_done_in_time_when_ten_times_as_much_is_offered():
    """Requests of all sizes come ten times as fast as they can be done, from clients that wait a minute."""
    scheduler, clock = make()
    rng = random.Random(3)
    offered = refused = 0
    taken, seconds, tokens = {}, [], 0
    while clock.now < 2000:
        while offered < 10 * RATE * clock.now + 1:
            job = Job([rng.choice([512, 300])] * rng.randint(2, 40))
            offered += job.tokens
            try:
                scheduler.add(job, patience=60)
                taken[job] = clock.now
            except QueueFullError:
                refused += 1
        for job in run(scheduler, clock)[1]:
            seconds.append(clock.now - taken.pop(job))
            tokens += job.tokens
    assert refused > len(seconds)
    assert tokens > 0.9 * 2000 * RATE
    assert sum(waited > 60 for waited in seconds) / len(seconds) < 0.05
    assert scheduler.n_waiting < 100


def test_the_rate_is_learnt():
    scheduler, clock = make()
    scheduler.add(Job([512] * 100))
    scheduler.check(20_000, patience=90)
    for _ in range(20):  # ten times slower than it was told
        batch = scheduler.poll()
        clock.now += batch.tokens / RATE * 10
        scheduler.finish(batch)
    with pytest.raises(QueueFullError):
        scheduler.check(20_000, patience=90)


# --- cancelling and closing ------------------------------------------------------------------------------


def test_what_waits_of_a_cancelled_request_is_dropped():
    scheduler, clock = make()
    gone, other = Job([512] * 100), Job([512] * 2)
    scheduler.add(gone)
    scheduler.add(other)
    batch = scheduler.poll()
    scheduler.cancel(gone)
    clock.now += 1
    assert gone not in scheduler.finish(batch)
    done = run_all(scheduler, clock)
    assert set(done) | {other} == {other}
    scheduler.cancel(gone)  # again is nothing
    assert scheduler.n_waiting == 0
    assert scheduler.poll() is None
    scheduler.add(Job([4096] * 10_000), patience=1)  # it is idle again: nothing is counted that is gone


def test_whoever_waits_for_a_batch_gets_the_next_and_is_let_go_in_the_end():
    scheduler, _ = make()
    got = []

    def work():
        while (batch := scheduler.take(LANES)) is not None:
            got.extend(batch.parts)
            scheduler.finish(batch)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    jobs = [Job([100]) for _ in range(50)]
    for job in jobs:
        scheduler.add(job)
    scheduler.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert set(got) == set(jobs)
