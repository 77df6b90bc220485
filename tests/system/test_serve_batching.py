"""The queue: batches by size or deadline, in order of arrival, bounded, and nothing lost when workers die. Workers are
pretended, time is real.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from pyvimtrt.errors import BackendError
from pyvimtrt.serve import batcher as module
from pyvimtrt.serve.batcher import Batcher, EngineFailedError, QueueFullError
from pyvimtrt.serve.engine_process import SLOTS, EngineChangedError
from pyvimtrt.serve.metrics import Metrics, ModelMetrics
from pyvimtrt.serve.settings import MOST_IMAGES, ServeSettings
from pyvimtrt.serve.worker import FileState, file_state

pytestmark = pytest.mark.alone  # deadlines of hundredths of a second
U8 = npt.NDArray[np.uint8]
BATCH = 4


class PretendProcess:
    """A worker that answers each image with its first pixel, when the test says so."""

    all: ClassVar[list[PretendProcess]] = []

    failures: ClassVar[list[Exception]] = []  # of the next starts after the first

    def __init__(self, path: Path, backend: str, config: Any, threads: int, state: FileState) -> None:
        assert state == file_state(path) and backend == "cpu"
        self.threads, self.config = threads, config
        self.ran: list[tuple[int, list[int], int]] = []
        self.pending: list[tuple[int, int]] = []
        self.pid = 100 + len(self.all)
        self.closed = self.killed = False

    async def start(self, batch: int = 0) -> tuple[int, float]:
        if self.all and self.failures:
            raise self.failures.pop(0)
        return batch or BATCH, 0.1

    def kill(self) -> None:
        self.killed = True

    def open(self, batch: int) -> None:
        shape = (self.config.channels, self.config.img, self.config.img)
        images = [np.full((batch, *shape), 0xA5, np.uint8) for _ in range(SLOTS)]
        self.slots = SimpleNamespace(
            images=images,
            logits=[np.full((batch, self.config.classes), np.nan, np.float32) for _ in range(SLOTS)],
        )
        self.all.append(self)

    def run(self, slot: int, count: int, threads: int) -> None:
        self.ran.append((slot, [int(image[0, 0, 0]) for image in self.slots.images[slot][:count]], threads))
        self.pending.append((slot, count))

    def finish(self, error: str | None = None) -> None:
        """Answer the oldest batch."""
        slot, count = self.pending.pop(0)
        self.slots.logits[slot][:count] = self.slots.images[slot][:count, 0, 0, 0, None]
        self.slots.images[slot][:] = 0xA5  # before `finished`, which may fill the slot again
        self.finished(slot, 0.01, error)
        self.slots.logits[slot][:] = np.nan

    def die(self) -> None:
        self.slots.images = self.slots.logits = []
        self.lost()

    async def close(self) -> None:
        self.closed = True

    finished: Callable[[int, float, str | None], None]
    lost: Callable[[], None]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[PretendProcess]]:
    monkeypatch.setattr(module, "EngineProcess", PretendProcess)
    PretendProcess.all, PretendProcess.failures = [], []
    yield PretendProcess.all
    PretendProcess.all, PretendProcess.failures = [], []


class Bench:
    """A batcher under test, and clients of it."""

    def __init__(self, engine: Path, **settings: Any) -> None:
        self.metrics = Metrics()
        options = {"batch": BATCH, "queue": 100, "workers": 1, "threads": 4, "deadline": 0.02} | settings
        self.changes = 0
        self.batcher = Batcher("m", engine, ServeSettings(**options), ModelMetrics(self.metrics, "m"), self._changed)
        self.done: list[int] = []

    def _changed(self) -> None:
        self.changes += 1

    def ask(self, first: int, count: int = 1) -> asyncio.Task[npt.NDArray[np.float32]]:
        """Send images whose first pixels are first, first + 1, ..."""

        async def one() -> npt.NDArray[np.float32]:
            images = np.zeros((count, 1, 8, 8), np.uint8)
            images[:, 0, 0, 0] = range(first, first + count)
            with self.batcher.reserve(count) as reservation:
                answer = await self.batcher.run(reservation, images)
            self.done.append(first)
            assert np.array_equal(
                answer.logits, np.repeat(np.arange(first, first + count, dtype=np.float32)[:, None], 3, axis=1)
            )
            return answer.logits

        return asyncio.create_task(one())


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 10))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_full_batch_starts_at_once_and_the_rest_waits_for_the_deadline(
    tiny_engine_file: Path, processes: list[PretendProcess]
) -> None:
    async def test() -> None:
        bench = Bench(tiny_engine_file, workers=2, deadline=0.3)
        await bench.batcher.start()
        tasks = [bench.ask(i) for i in range(6)]
        await settle()
        assert [p.ran for p in processes] == [[(1, [0, 1, 2, 3], 4)], []]
        assert bench.batcher.waiting == 2
        await asyncio.sleep(0.4)
        assert processes[1].ran == [(1, [4, 5], 2)], "the second batch shares the cores"
        assert bench.batcher.waiting == 0
        processes[1].finish()
        processes[0].finish()
        await asyncio.gather(*tasks)
        assert bench.done == [4, 5, 0, 1, 2, 3]
        await bench.batcher.close()
        assert all(p.closed for p in processes)

    run(test)


def test_answers_come_in_order_of_arrival(tiny_engine_file: Path, processes: list[PretendProcess]) -> None:
    async def test() -> None:
        bench = Bench(tiny_engine_file)
        await bench.batcher.start()
        sizes = [3, 1, 6, 1, 2, 4, 1, 1]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        tasks = [bench.ask(start, size) for start, size in zip(starts, sizes, strict=True)]
        await settle()
        while not all(task.done() for task in tasks):
            processes[0].finish()
            await settle()
            if not processes[0].pending:
                await asyncio.sleep(0.03)
        assert bench.done == starts
        seen = [pixel for _, pixels, _ in processes[0].ran for pixel in pixels]
        assert seen == list(range(sum(sizes)))
        assert [len(pixels) for _, pixels, _ in processes[0].ran] == [4, 4, 4, 4, 3], (
            "requests are split so that batches are full"
        )
        await asyncio.gather(*tasks)

    run(test)


def test_a_busy_worker_gets_one_full_batch_in_advance(tiny_engine_file: Path, processes: list[PretendProcess]) -> None:
    async def test() -> None:
        bench = Bench(tiny_engine_file, deadline=0.0)
        await bench.batcher.start()
        tasks = [bench.ask(0, 4), bench.ask(4, 3)]
        await settle()
        await asyncio.sleep(0.01)
        assert len(processes[0].ran) == 1, "three images do not fill a batch, so more may join them"
        tasks += [bench.ask(7, 1), bench.ask(8, 4)]
        await settle()
        assert [pixels for _, pixels, _ in processes[0].ran] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert bench.batcher.waiting == 8, "what lies ready still waits"
        for _ in range(3):
            processes[0].finish()
            await settle()
        await asyncio.gather(*tasks)
        assert bench.batcher.waiting == 0

    run(test)


def test_the_queue_is_bounded_and_refuses_at_once(tiny_engine_file: Path, processes: list[PretendProcess]) -> None:
    async def test() -> None:
        bench = Bench(tiny_engine_file, queue=6)
        await bench.batcher.start()
        running = bench.ask(0, 4)
        await settle()
        tasks = [bench.ask(4, 4), bench.ask(8, 1)]
        await settle()
        assert bench.batcher.waiting == 5 and not bench.batcher.full
        with pytest.raises(QueueFullError, match="5 images wait, at most 6 may"):
            await bench.ask(9, 2)
        tasks.append(bench.ask(9, 1))
        await settle()
        assert bench.batcher.full and bench.batcher.lease() is None
        with pytest.raises(QueueFullError):
            await bench.ask(20)
        processes[0].finish()
        await running
        assert not bench.batcher.full
        processes[0].finish()
        await asyncio.sleep(0.03)
        processes[0].finish()
        await asyncio.gather(*tasks)
        assert bench.batcher.waiting == 0

    run(test)


def test_leases_count_requests_whose_bodies_are_on_their_way_but_not_for_long(
    tiny_engine_file: Path, processes: list[PretendProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        monkeypatch.setattr(module, "LEASE_SECONDS", 0.3)
        bench = Bench(tiny_engine_file, queue=2)
        await bench.batcher.start()
        first, second = bench.batcher.lease(), bench.batcher.lease()
        assert first and second and bench.batcher.lease() is None
        bench.batcher.release(first)
        with bench.batcher.reserve(1):
            assert bench.batcher.lease() is None, "the lease has become a place"
        assert bench.batcher.lease() is not None
        assert bench.batcher.lease() is None
        await asyncio.sleep(0.4)
        assert bench.batcher.lease() is not None, "who sends slowly keeps nobody out"

    run(test)


def test_a_cancelled_request_leaves_the_queue(tiny_engine_file: Path, processes: list[PretendProcess]) -> None:
    async def test() -> None:
        bench = Bench(tiny_engine_file)
        await bench.batcher.start()
        running = bench.ask(0, 4)
        await settle()
        gone, stays = bench.ask(4, 2), bench.ask(6, 1)
        await settle()
        gone.cancel()
        await settle()
        assert gone.cancelled() and bench.batcher.waiting == 1
        processes[0].finish()
        await running
        await asyncio.sleep(0.03)
        assert processes[0].ran[1][1] == [6], "what was cancelled is not run"
        processes[0].finish()
        await stays
        started = bench.ask(7, 4)
        await settle()
        started.cancel()
        await settle()
        processes[0].finish()
        assert bench.batcher.waiting == 0 and bench.metrics.cancelled.labels("m")._value.get() == 2

    run(test)


def test_a_dead_workers_batches_are_run_by_another(tiny_engine_file: Path, processes: list[PretendProcess]) -> None:
    async def test() -> None:
        bench = Bench(tiny_engine_file)
        await bench.batcher.start()
        tasks = [bench.ask(4 * i, 4) for i in range(3)]
        await settle()
        assert len(processes[0].pending) == 2
        processes[0].die()
        assert not bench.batcher.ready and bench.batcher.waiting == 12
        await asyncio.sleep(0.05)
        assert bench.batcher.ready and len(processes) == 2
        for _ in range(3):
            processes[1].finish()
            await settle()
        await asyncio.gather(*tasks)
        assert bench.done == [0, 4, 8] and bench.batcher.waiting == 0
        assert bench.metrics.restarts.labels("m")._value.get() == 1

    run(test)


def test_a_batch_that_kills_its_workers_is_given_up(
    tiny_engine_file: Path, processes: list[PretendProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_SECONDS", (0.0,))

    async def test() -> None:
        bench = Bench(tiny_engine_file)
        await bench.batcher.start()
        deadly, good = bench.ask(0, 4), bench.ask(4, 4)
        await settle()
        for i in range(module.ATTEMPTS):
            assert not deadly.done()
            processes[i].die()
            await asyncio.sleep(0.02)
        with pytest.raises(EngineFailedError, match="ended 3 times"):
            await deadly
        processes[module.ATTEMPTS].finish()
        await good
        assert bench.batcher.waiting == 0

    run(test)


def test_a_worker_that_does_not_start_is_tried_again(
    tiny_engine_file: Path, processes: list[PretendProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_SECONDS", (0.0,))

    async def test() -> None:
        bench = Bench(tiny_engine_file)
        await bench.batcher.start()
        PretendProcess.failures = [BackendError("damaged"), OSError("no memory"), BackendError("damaged")]
        task = bench.ask(0, 4)
        await settle()
        processes[0].die()
        await asyncio.sleep(0.05)
        assert len(processes) == 2 and bench.batcher.ready and not PretendProcess.failures
        processes[1].finish()
        await task
        await bench.batcher.close()

    run(test)


def test_an_engine_that_changed_is_not_mixed_with_the_one_in_service(
    tiny_engine_file: Path, processes: list[PretendProcess]
) -> None:
    async def test() -> None:
        bench = Bench(tiny_engine_file, workers=2)
        await bench.batcher.start()
        PretendProcess.failures = [EngineChangedError("changed"), EngineChangedError("changed")]
        tasks = [bench.ask(4 * i, 4) for i in range(3)]
        await settle()
        processes[0].die()
        await asyncio.sleep(0.02)
        assert bench.changes == 1 and bench.batcher.outdated and bench.batcher.ready, "the other worker serves on"
        while processes[1].pending:
            processes[1].finish()
            await settle()
        await asyncio.gather(*tasks)
        late = bench.ask(20, 4)
        await settle()
        processes[1].die()
        with pytest.raises(EngineFailedError, match="changed"):
            await late
        assert bench.changes == 2 and not bench.batcher.ready and bench.batcher.waiting == 0
        await bench.batcher.close()

    run(test)


def test_a_failed_request_is_run_no_further(tiny_engine_file: Path, processes: list[PretendProcess]) -> None:
    async def test() -> None:
        bench = Bench(tiny_engine_file)
        await bench.batcher.start()
        long = bench.ask(0, 20)
        await settle()
        processes[0].finish("not finite")
        with pytest.raises(EngineFailedError, match="not finite"):
            await long
        processes[0].finish()
        await settle()
        assert bench.batcher.waiting == 0 and not processes[0].pending and len(processes[0].ran) == 2

    run(test)


def test_an_engine_loaded_again_keeps_its_batches(tiny_engine_file: Path, processes: list[PretendProcess]) -> None:
    async def test() -> None:
        bench, again = Bench(tiny_engine_file, queue=0), Bench(tiny_engine_file, queue=0, batch=0)
        await bench.batcher.start()
        bench.batcher.batch, bench.batcher.capacity = 7, 70
        await again.batcher.start(like=bench.batcher)
        assert (again.batcher.batch, again.batcher.capacity) == (7, 70)
        again.batcher.kill()
        assert processes[1].killed and not processes[0].killed

    run(test)


def test_an_error_of_the_engine_reaches_its_requests_alone(
    tiny_engine_file: Path, processes: list[PretendProcess]
) -> None:
    async def test() -> None:
        bench = Bench(tiny_engine_file)
        await bench.batcher.start()
        bad, good = bench.ask(0, 4), bench.ask(4, 4)
        await settle()
        processes[0].finish("not finite")
        with pytest.raises(EngineFailedError, match="not finite"):
            await bad
        processes[0].finish()
        await good

    run(test)


def test_closing_answers_what_was_accepted(tiny_engine_file: Path, processes: list[PretendProcess]) -> None:
    async def test() -> None:
        bench = Bench(tiny_engine_file)
        await bench.batcher.start()
        tasks = [bench.ask(4 * i, 4) for i in range(2)]
        await settle()
        closing = asyncio.create_task(bench.batcher.close())
        await asyncio.sleep(0.02)
        assert not closing.done() and not processes[0].closed
        for _ in range(2):
            processes[0].finish()
        await asyncio.gather(closing, *tasks)
        assert processes[0].closed and not bench.batcher.ready

    run(test)


def test_defaults_follow_the_engine(tiny_engine_file: Path, processes: list[PretendProcess]) -> None:
    async def test() -> None:
        bench = Bench(tiny_engine_file, batch=0, queue=0, workers=0, threads=2)
        await bench.batcher.start()
        assert (bench.batcher.batch, bench.batcher.workers, bench.batcher.queue_limit) == (BATCH, 2, 8)
        assert [p.threads for p in processes] == [1, 1], "the best batch is measured with a worker's share of the cores"

    run(test)


def test_a_request_of_many_batches_is_taken_whatever_the_machine(
    tiny_engine_file: Path, processes: list[PretendProcess]
) -> None:
    """Without --queue the queue is short, so that answers come soon; a request larger than all of it is taken while
    there is any room.
    """

    async def test() -> None:
        bench = Bench(tiny_engine_file, queue=0, workers=1)
        await bench.batcher.start()
        assert bench.batcher.queue_limit == BATCH
        first = bench.ask(0)
        await settle()
        large = bench.ask(1, MOST_IMAGES)
        await settle()
        with pytest.raises(QueueFullError, match=f"at most {BATCH} may"):
            await bench.ask(100)
        while not large.done():
            if processes[0].pending:
                processes[0].finish()
            await asyncio.sleep(0.001)
        await asyncio.gather(first, large)
        assert sum(len(pixels) for _, pixels, _ in processes[0].ran) == 1 + MOST_IMAGES
        assert max(len(pixels) for _, pixels, _ in processes[0].ran) == BATCH and bench.batcher.waiting == 0

    run(test)


def test_the_best_batch_is_the_smallest_that_is_nearly_best(tiny_engine_file: Path) -> None:
    from pyvimtrt.serve.worker import best_batch

    class Timed:
        """An engine whose batch takes a fixed time and a time for each image, on a clock of its own."""

        def __init__(self, fixed: float, each: float) -> None:
            self.fixed, self.each, self.now = fixed, each, 0.0
            self.config = SimpleNamespace(channels=1, img=1)

        def run(self, images: U8) -> None:
            self.now += self.fixed + self.each * len(images)

    def best(fixed: float, each: float) -> int:
        engine: Any = Timed(fixed, each)
        return best_batch(engine, lambda: engine.now)[0]

    assert best(0.0, 0.001) == 1
    assert best(0.001, 0.001) == 16
    assert best(0.01, 1e-5) == 64
    assert best(1.0, 1.0) == 1, "measuring ends where it would take too long"
