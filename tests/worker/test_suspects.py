"""Messages that kill their process: how often they start, and that they take no neighbour with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from queue_worker import Job, events
from queue_worker.suspects import ALONE, BESIDE, NONE, SuspectGate
from tests.helpers import running, wait_until
from tests.sql.engine import Engine
from tests.worker.kit import Door, app_of, turns
from tests.worker.processes import NOTES, Zygote

pytestmark = pytest.mark.conformance(hosted=True)

QUEUES = ("a", "b", "c")


class Gate(RuleBasedStateMachine):
    """A process of three queues. Queues hold clean messages and suspects that may need to run alone."""

    @initialize()
    def begin(self) -> None:
        self.held: dict[str, list[str]] = {queue: [] for queue in QUEUES}
        self.waiting: dict[str, list[str]] = {queue: [] for queue in QUEUES}
        self.claiming: dict[str, int] = {}
        self.gate = SuspectGate(lambda: not any(self.held.values()))

    @rule(queue=st.sampled_from(QUEUES), kind=st.sampled_from(["clean", "suspect", "alone"]))
    def send(self, queue: str, kind: str) -> None:
        self.waiting[queue].append(kind)

    @rule(queue=st.sampled_from(QUEUES))
    def enter(self, queue: str) -> None:
        if queue not in self.claiming:
            level = self.gate.enter(queue)
            if level is not None:
                self.claiming[queue] = level

    @rule(queue=st.sampled_from(QUEUES), fails=st.booleans(), count=st.integers(1, 3))
    def answer(self, queue: str, fails: bool, count: int) -> None:
        """The claim's reply arrives: as SQL `claim` would answer, or an error."""
        if queue not in self.claiming:
            return
        level = self.claiming.pop(queue)
        taken, left = ([], None) if fails else self.take(queue, level, count)
        self.held[queue] += taken
        took = any(kind != "clean" for kind in taken)
        self.gate.answer(queue, level, took=took, alone=len(taken) == 1, waiting=left)

    def take(self, queue: str, level: int, count: int) -> tuple[list[str], str | None]:
        front = self.waiting[queue][:]
        suspects = [kind for kind in front if kind != "clean"]
        chosen = next((k for k in suspects if (2 if k == "alone" else 1) <= level), None)
        clean = [kind for kind in front if kind == "clean"][:count]
        taken = ["alone"] if chosen == "alone" else clean + ([chosen] if chosen else [])
        for kind in taken:
            self.waiting[queue].remove(kind)
        left = None if chosen or not suspects else "alone" if "alone" in suspects else "suspect"
        return taken, left

    @rule(queue=st.sampled_from(QUEUES))
    def finish(self, queue: str) -> None:
        if self.held[queue] and self.held[queue].pop(0) != "clean":
            self.gate.ended(queue)

    @rule(queue=st.sampled_from(QUEUES))
    def no_room(self, queue: str) -> None:
        if queue not in self.claiming:
            self.gate.pass_by(queue)

    @invariant()
    def never_two_suspects(self) -> None:
        running = [kind for held in self.held.values() for kind in held if kind != "clean"]
        assert len(running) <= 1

    @invariant()
    def alone_means_alone(self) -> None:
        running = [kind for held in self.held.values() for kind in held]
        assert "alone" not in running or len(running) == 1

    @invariant()
    def at_most_one_may_bring_a_suspect(self) -> None:
        assert sum(level != NONE for level in self.claiming.values()) <= 1
        assert ALONE not in self.claiming.values() or len(self.claiming) == 1

    @precondition(lambda self: any(self.waiting.values()))
    @rule()
    def drain(self) -> None:
        """Whatever came before, loops that go on looking get everything done: no deadlock, no starvation."""
        for _ in range(40 * (1 + sum(map(len, self.waiting.values())))):
            for queue in QUEUES:
                self.enter(queue)
            for queue in QUEUES:
                self.answer(queue, fails=False, count=2)
            for queue in QUEUES:
                self.finish(queue)
        assert not any(self.waiting.values()), self.waiting


Gate.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestGate = Gate.TestCase


def test_an_empty_looking_process_with_a_claim_under_way_is_not_empty() -> None:
    gate = SuspectGate(lambda: True)
    assert gate.enter("a") == BESIDE
    assert gate.enter("b") == NONE  # its answer is still to come
    gate.answer("a", BESIDE, waiting="alone")
    assert gate.enter("a") is None
    gate.answer("b", NONE)
    assert gate.enter("a") == ALONE
    assert gate.enter("b") is None


def test_a_queue_without_room_does_not_hold_its_place_in_the_line() -> None:
    gate = SuspectGate(lambda: False)
    assert gate.enter("a") == BESIDE
    assert gate.enter("b") == NONE
    gate.answer("a", BESIDE, took=True)
    gate.answer("b", NONE, waiting="suspect")
    gate.ended("a")
    assert gate.enter("a") == NONE  # b was first
    gate.answer("a", NONE, waiting="suspect")
    gate.pass_by("b")
    assert gate.enter("a") == BESIDE


def test_the_loops_look_again_as_soon_as_a_suspect_may_start() -> None:
    woken: list[str] = []
    gate = SuspectGate(lambda: True, lambda: woken.append("all"))
    gate.enter("a")
    gate.answer("a", BESIDE, took=True)
    gate.ended("a")
    assert woken == []  # nobody waits
    gate.enter("a")
    gate.enter("b")
    gate.answer("a", BESIDE, took=True)
    gate.answer("b", NONE, waiting="suspect")
    gate.ended("b")
    assert woken == []  # not its suspect
    gate.ended("a")
    assert len(woken) == 1  # for b, which stands in line
    gate.enter("b")
    gate.answer("b", BESIDE, waiting="alone")
    gate.emptied()
    assert len(woken) == 2  # for b, which waits for an empty process
    assert gate.enter("b") == ALONE
    gate.answer("b", ALONE)
    assert len(woken) == 3  # for the others, which were held up in vain


# ------------------------------------------------------------------------------------------------ in one process


def lost(engine: Engine, payload: dict[str, Any], times: int) -> int:
    """Send a message whose process has ended `times` times while it ran as a suspect; in one transaction."""
    engine.rows("begin")
    msg_id = engine.send(payload)
    engine.rows("update pgmq.q_QUEUE set read_ct = 1 where msg_id = %s", msg_id)
    engine.rows(
        "insert into queue_worker_data.trouble (queue, msg_id, enqueued_at, lost)"
        " select 'QUEUE', msg_id, enqueued_at, %s from pgmq.q_QUEUE where msg_id = %s",
        times,
        msg_id,
    )
    engine.rows("commit")
    return msg_id


def test_a_suspect_of_three_losses_runs_while_nothing_else_does(dsn: str, engine: Engine) -> None:
    other = Engine(engine.connection, "other").create()
    before, alone, after = Door(), Door(), Door()
    doors = {"before": before, "alone": alone, "after": after}
    app = app_of(lambda job: doors[job.payload["door"]].wait(), "work", "other")
    other.send({"door": "before"})
    with events.capture("suspect.started") as suspects, running(dsn, app) as worker:
        before.reached()
        msg_id = lost(engine, {"door": "alone"}, 3)
        wait_until(lambda: worker.service._gate._wants_alone == "work")
        # A claim that was under way when the wish came may still bring something, which is waited for too.
        turns(worker, "work")
        turns(worker, "other")
        engine.send({"door": "after"})
        other.send({"door": "after"})
        turns(worker, "work")
        turns(worker, "other")
        assert (alone.arrived, after.arrived) == (0, 0)
        before.open()
        alone.reached()
        turns(worker, "work")
        turns(worker, "other")
        assert after.arrived == 0
        assert sum(worker.busy for worker in worker.service.workers) == 1
        alone.open()
        after.reached(2)
        after.open()
    assert [fields for _, fields in suspects] == [{"queue": "work", "msg_id": msg_id, "lost": 4, "alone": True}]
    assert engine.places(msg_id) == ["archive"]


def test_suspects_of_two_queues_run_one_after_the_other_beside_clean_work(dsn: str, engine: Engine) -> None:
    other = Engine(engine.connection, "other").create()
    door, clean = Door(), Door()

    def handle(job: Job[dict[str, Any]]) -> None:
        (door if "suspect" in job.payload else clean).wait()

    for queue in (engine, other):
        for _ in range(3):
            lost(queue, {"suspect": 1}, 0)
        queue.send({})
    with running(dsn, app_of(handle, "work", "other")) as worker:
        clean.reached(2)
        door.reached(1)
        for queue in ("work", "other"):
            turns(worker, queue)
        assert len(door.inside) == 1
        clean.open()
        door.open()
        wait_until(lambda: engine.count("archive") + other.count("archive") == 8, 20)
    assert engine.count("dead") == 0


def test_burst_does_not_leave_a_waiting_suspect_behind(dsn: str, engine: Engine) -> None:
    lost(engine, {}, 3)
    with running(dsn, app_of(lambda job: None), burst=True) as worker:
        wait_until(lambda: worker.code == 0)
    assert engine.count("archive") == 1


def test_burst_ends_at_a_paused_queue(dsn: str, engine: Engine) -> None:
    engine.send({})
    engine.rows("select queue_worker.pause('work')")
    with running(dsn, app_of(lambda job: None), burst=True) as worker:
        wait_until(lambda: worker.code == 0)
    assert engine.count("queue") == 1


# ------------------------------------------------------------------------------------------------ real processes


@pytest.mark.parametrize(("do", "code"), [("exit", 9), ("segv", -11)])
def test_a_message_that_kills_its_process_dies_alone(
    dsn: str, engine: Engine, db: psycopg.Connection[Any], zygote: Zygote, tmp_path: Path, do: str, code: int
) -> None:
    db.execute(NOTES)
    for number in range(12):
        engine.send({"do": do if number == 4 else "effect", "key": str(number)})
    for _ in range(4):
        process = zygote.start(dsn, tmp_path, options={"max_lost": 4, "concurrency": 3, "lease": 600})
        assert process.ended() == code
        engine.age()
    last = zygote.start(dsn, tmp_path, options={"max_lost": 4, "concurrency": 3, "lease": 600}, burst=True)
    assert last.ended() == 0
    assert db.execute("select count(*) from starts where key = '4'").fetchone() == (4,)
    assert engine.rows("select msg_id, reason, attempts from queue_worker.dead_letters") == [(5, "lost", 4)]
    assert engine.count("archive") == 11
    assert db.execute("select count(*), count(distinct key) from effects").fetchone() == (11, 11)
