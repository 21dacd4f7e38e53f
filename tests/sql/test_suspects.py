"""Messages found without a recorded outcome: who may start them, how often, and what becomes of them."""

from __future__ import annotations

import psycopg

from tests.sql.engine import Engine, receipt


class Process:
    """What a worker process does with suspects: at most one, and alone when it must."""

    def __init__(self, engine: Engine, max_lost: int = 5) -> None:
        self.engine = engine
        self.max_lost = max_lost
        self.starts: dict[int, int] = {}

    def work(self, killer: int, batch: int = 10) -> None:
        """Claim until nothing is left, dying with all it holds whenever it starts the killer."""
        level = 1
        while True:
            rows = self.engine.claim(batch, suspects=level, max_lost=self.max_lost)
            kinds = {row.kind for row in rows}
            jobs = [receipt(row) for row in rows if row.kind == "job"]
            if not rows:
                return
            for one in jobs:
                self.starts[one[0]] = self.starts.get(one[0], 0) + 1
            if killer in [one[0] for one in jobs]:
                self.engine.age()  # the process is dead, and some time has passed
            else:
                self.engine.settle(done=jobs)
            level = 2 if "alone" in kinds else 1


def test_a_killer_starts_exactly_max_lost_times_and_dies_as_lost(engine: Engine) -> None:
    for max_lost in (1, 2, 3, 5, 8):
        killer = engine.send()
        process = Process(engine, max_lost)
        process.work(killer)
        assert process.starts == {killer: max_lost}
        assert engine.places(killer) == ["dead"]
        dead = "select reason, attempts, payload from queue_worker.dead_letters where msg_id = %s"
        assert engine.rows(dead, killer) == [("lost", max_lost, {})]
        failures = "select kind, attempt from queue_worker.failures where msg_id = %s"
        assert engine.rows(failures, killer) == [("lost", max_lost)]
        assert engine.trouble(killer) is None


def test_the_batch_mates_of_a_killer_are_all_done(engine: Engine) -> None:
    for round_, position in enumerate([0, 4, 9, 24]):
        engine.fill(25)
        killer = 25 * round_ + position + 1
        process = Process(engine)
        process.work(killer)
        assert engine.count("queue") == 0
        assert engine.places(killer) == ["dead"]
        assert engine.count("dead") == round_ + 1
        assert engine.count("archive") == 24 * (round_ + 1)
        # Whoever shared the killer's first starts was started again, and nobody more often than its losses allow.
        assert max(process.starts.values()) == process.starts[killer] == 5


def lose(engine: Engine, *ids: int, times: int = 1) -> None:
    """Let messages be started and never settled, `times` times."""
    for _ in range(times):
        engine.rows("update pgmq.q_QUEUE set vt = now() + interval '1 h' where msg_id <> all (%s)", list(ids))
        for _ in ids:
            engine.claim(len(ids), suspects=2)
        engine.age()


def test_a_claim_brings_one_suspect_at_most_and_only_to_whom_asks(engine: Engine) -> None:
    engine.fill(3)
    lose(engine, 1, 2, 3)
    assert [row.kind for row in engine.claim(10)] == ["suspect"]
    assert [row.kind for row in engine.claim(10, suspects=1)] == ["job"]
    assert [row.kind for row in engine.claim(10, suspects=1)] == ["job"]
    assert [row.kind for row in engine.claim(10, suspects=2)] == ["job"]
    assert engine.claim(10, suspects=2) == []


def test_suspects_in_front_do_not_block_clean_messages_behind_them(engine: Engine) -> None:
    engine.fill(30)
    lose(engine, *range(1, 26))
    engine.rows("update pgmq.q_work set vt = now() - interval '1 h' where msg_id <= 25")
    for count in (1, 2):
        rows = engine.claim(count)
        assert sorted(row.kind for row in rows) == ["job"] * count + ["suspect"]
        assert all(row.msg_id > 25 for row in rows if row.kind == "job")
    rows = engine.claim(10, suspects=1)
    assert sum(row.lost for row in rows) == 1
    assert sorted(row.msg_id for row in rows)[1:] == [29, 30]


def test_from_three_losses_on_a_suspect_runs_only_alone(engine: Engine) -> None:
    engine.fill(6)
    lose(engine, 1, times=4)  # one first start and three as a suspect
    assert engine.trouble(1) == (0, 3, None)
    engine.rows("update pgmq.q_work set vt = vt - interval '1 h' where msg_id = 1")
    rows = engine.claim(3, suspects=1)
    assert sorted((row.kind, row.msg_id or 0) for row in rows) == [("alone", 0), ("job", 2), ("job", 3), ("job", 4)]
    alone = engine.claim(3, suspects=2)
    assert [(row.kind, row.msg_id, row.lost) for row in alone] == [("job", 1, 4)]
    assert [row.msg_id for row in engine.claim(3, suspects=2)] == [5, 6]


def test_two_claims_at_once_never_share_a_suspect(dsn: str, engine: Engine) -> None:
    engine.fill(1)
    lose(engine, 1)
    with psycopg.connect(dsn) as first, psycopg.connect(dsn) as second:
        assert len(Engine(first).take(5, suspects=1)) == 1
        assert Engine(second).claim(5, suspects=1) == []
    assert engine.trouble(1) == (0, 1, None)


def test_a_recorded_outcome_ends_the_suspicion(engine: Engine) -> None:
    engine.fill(1)
    lose(engine, 1, times=3)
    engine.settle(others=[(engine.take_one(suspects=1), "failed", 0, "", "e")])
    assert engine.trouble(1).lost == 0
    row = engine.claim(1)[0]
    assert (row.kind, row.failures, row.lost) == ("job", 1, 0)


def test_a_release_charges_nothing_and_gives_a_suspect_its_start_back(engine: Engine) -> None:
    engine.fill(1)
    lose(engine, 1, times=3)
    assert engine.trouble(1).lost == 2
    assert engine.release([engine.take_one(suspects=1)]) == 1
    assert engine.trouble(1).lost == 2
    # Released cleanly a second time it is no suspect, so there is no start to give back.
    assert engine.release([engine.take_one()]) == 1
    assert engine.trouble(1)[:2] == (0, 2)
    assert engine.value("select count(*) from queue_worker.failures") == 0


def test_a_message_that_was_only_ever_released_leaves_no_trace_when_it_is_done(engine: Engine) -> None:
    engine.fill(1)
    for _ in range(20):
        assert engine.release([engine.take_one()]) == 1
    engine.settle(done=[engine.take_one()])
    assert engine.places(1) == ["archive"]
    assert engine.trouble(1) is None


def test_a_late_report_of_a_living_worker_takes_one_loss_back(engine: Engine) -> None:
    engine.fill(1)
    late = engine.take_one()
    engine.age()
    engine.take_one(suspects=1)
    assert engine.trouble(1).lost == 1
    assert engine.settle(done=[late]) == {1: "stale"}
    assert engine.trouble(1).lost == 0
    assert engine.settle(done=[late]) == {1: "stale"}
    assert engine.trouble(1).lost == 0


def test_an_outage_of_many_leases_is_not_a_kill(engine: Engine) -> None:
    engine.fill(1)
    held = engine.take_one()
    for _ in range(20):
        engine.age()
        held, late = engine.take_one(suspects=2), held
        assert engine.settle(done=[late]) == {1: "stale"}
    assert engine.settle(done=[held]) == {}
    assert engine.places(1) == ["archive"]


def test_an_outcome_sent_twice_takes_no_other_loss_back(engine: Engine) -> None:
    engine.fill(1)
    lose(engine, 1, times=4)
    outcome = (engine.take_one(suspects=2), "release", 0, "", "")
    engine.settle(others=[outcome])
    assert engine.trouble(1).lost == 3
    assert engine.settle(others=[outcome]) == {1: "gone"}
    assert engine.trouble(1).lost == 3


def test_a_late_report_from_before_the_last_outcome_takes_nothing_back(engine: Engine) -> None:
    engine.fill(1)
    late = engine.take_one()
    engine.age()
    engine.settle(others=[(engine.take_one(suspects=1), "failed", 0, "", "e")])
    engine.take_one()
    engine.age()
    engine.take_one(suspects=1)  # lost by somebody else, after that outcome
    assert engine.trouble(1).lost == 1
    assert engine.settle(done=[late]) == {1: "stale"}
    assert engine.trouble(1).lost == 1


def test_a_message_that_somebody_read_by_hand_is_a_suspect_and_gets_done(engine: Engine) -> None:
    engine.fill(1)
    for _ in range(3):
        engine.rows("select * from pgmq.read('work', 0, 1)")
    assert engine.trouble(1) is None
    assert engine.settle(done=[engine.take_one(suspects=1)]) == {}
    assert engine.trouble(1) is None


def test_a_read_ct_that_cannot_grow_does_not_block_the_queue(engine: Engine) -> None:
    engine.fill(3)
    engine.rows("update pgmq.q_work set read_ct = 2147483647 where msg_id = 2")
    rows = engine.claim(3, suspects=1)
    assert sorted((row.kind, row.msg_id) for row in rows) == [("dead", 2), ("job", 1), ("job", 3)]
    assert engine.places(2) == ["dead"]


def test_a_dead_letter_found_at_a_claim_keeps_what_came_with_the_message(engine: Engine) -> None:
    msg_id = engine.send({"n": 1}, {"key": "k"})
    (dead,) = [row for row in (lose(engine, msg_id), engine.claim(1, suspects=1, max_lost=1))[1] if row.kind == "dead"]
    assert (dead.msg_id, dead.lost, dead.detail) == (msg_id, 1, "lost")
    assert engine.rows("select payload, headers from queue_worker.dead_letters") == [({"n": 1}, {"key": "k"})]
