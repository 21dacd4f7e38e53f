"""A message inside the caller's own transaction: it commits or rolls back with the caller's rows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import Engine as Alchemy
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

from queue_worker import LeaseLost, Queue
from queue_worker.errors import UsageError
from tests.sql.engine import Engine


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
def orders(engine: Engine) -> Engine:
    engine.rows("create table orders (id serial primary key)")
    return engine


@pytest.fixture
def alchemy(dsn: str) -> Iterator[Alchemy]:
    made = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(dsn), poolclass=NullPool)
    yield made
    made.dispose()


def counts(orders: Engine) -> tuple[int, int]:
    """Rows and messages that others see."""
    return orders.value("select count(*) from orders"), orders.count("queue")


def test_psycopg_commit_keeps_both_and_rollback_neither(orders: Engine, dsn: str) -> None:
    queue = Queue("work")
    with psycopg.connect(dsn, row_factory=dict_row) as connection:
        connection.execute("insert into orders default values")
        assert queue.send({"n": 1}, connection=connection) == 1
        assert counts(orders) == (0, 0)
        connection.commit()
        assert counts(orders) == (1, 1)
        connection.execute("insert into orders default values")
        queue.send_batch([{"n": 2}, {"n": 3}], connection=connection)
        connection.rollback()
        assert connection.execute("select 1 as one").fetchone() == {"one": 1}
    assert counts(orders) == (1, 1)


def test_the_callers_connection_keeps_its_own_ways(orders: Engine, dsn: str) -> None:
    with psycopg.connect(dsn, cursor_factory=psycopg.ClientCursor) as connection:
        Queue("work").send({}, connection=connection, delay=5)
        row = connection.execute("select now(), '{\"a\": 1}'::jsonb").fetchone()
        assert row is not None
        assert row[0].tzinfo is not None
        assert row[1] == {"a": 1}


def test_a_savepoint_takes_back_the_message_alone(orders: Engine, dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("insert into orders default values")
        with connection.transaction(force_rollback=True):
            Queue("work").send({}, connection=connection)
    assert counts(orders) == (1, 0)


def test_sqlalchemy_session_commit_keeps_both_and_rollback_neither(orders: Engine, alchemy: Alchemy) -> None:
    queue = Queue("work")
    with Session(alchemy) as session:
        session.add(Order())
        queue.send({"n": 1}, connection=session)
        assert counts(orders) == (0, 0)
        session.commit()
        assert counts(orders) == (1, 1)
        session.add(Order())
        queue.send({"n": 2}, connection=session)
        session.rollback()
    with scoped_session(sessionmaker(alchemy))() as session:
        queue.send({"n": 3}, connection=session)
    assert counts(orders) == (1, 1)


def test_sqlalchemy_connection_commits_even_if_the_message_is_its_only_statement(
    orders: Engine, alchemy: Alchemy
) -> None:
    queue = Queue("work")
    with alchemy.connect() as connection:
        queue.send({"n": 1}, connection=connection)
        assert counts(orders) == (0, 0)
        connection.commit()
        assert counts(orders) == (0, 1)
        connection.execute(text("insert into orders default values"))
        queue.send({"n": 2}, connection=connection)
        connection.rollback()
        queue.send({"n": 3}, connection=connection)
    assert counts(orders) == (0, 1)
    with alchemy.begin() as connection:
        queue.send({"n": 4}, connection=connection)
    assert counts(orders) == (0, 2)


def test_psycopg_async_connection_commits_and_rolls_back(orders: Engine, dsn: str) -> None:
    async def main() -> None:
        queue = Queue("work")
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            await connection.execute("insert into orders default values")
            assert await queue.asend({"n": 1}, connection=connection, delay="5s") == 1
            assert counts(orders) == (0, 0)
            await connection.commit()
            await queue.asend({"n": 2}, connection=connection)
            await connection.rollback()
            with pytest.raises(UsageError, match="max_attempts must be 1 to 1000"):
                await queue.asend({}, connection=connection, max_attempts=0)
            await connection.rollback()

    asyncio.run(main())
    assert counts(orders) == (1, 1)


def test_a_fetched_message_ends_in_the_transaction_of_its_rows(orders: Engine, dsn: str) -> None:
    queue = Queue("work")
    queue.send({})
    (one,) = queue.fetch(1)
    with psycopg.connect(dsn) as connection:
        connection.execute("insert into orders default values")
        one.complete(connection=connection)
        connection.rollback()
    assert counts(orders) == (0, 1)
    orders.age()
    (again,) = queue.fetch(1)
    with psycopg.connect(dsn) as connection:
        connection.execute("insert into orders default values")
        again.complete(connection=connection)
    assert counts(orders) == (1, 0)
    queue.send({})
    (late,) = queue.fetch(1)
    orders.age()
    queue.fetch(1)
    with psycopg.connect(dsn) as connection:
        connection.execute("insert into orders default values")
        with pytest.raises(LeaseLost):
            late.complete(connection=connection)
        connection.rollback()
    assert counts(orders) == (1, 1)


@pytest.mark.parametrize("given", [5, "postgresql://x", object()])
def test_anything_else_is_refused_by_its_name(given: Any, engine: Engine) -> None:
    with pytest.raises(UsageError, match="connection must be a psycopg Connection, or a Connection or Session of SQL"):
        Queue("work").send({}, connection=given)


def test_a_connection_of_the_other_kind_is_refused(engine: Engine, dsn: str, db: psycopg.Connection[Any]) -> None:
    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            with pytest.raises(UsageError, match=r"not psycopg\.AsyncConnection"):
                Queue("work").send({}, connection=connection)
        with pytest.raises(UsageError, match=r"AsyncConnection here, not psycopg\.Connection"):
            await Queue("work").asend({}, connection=db)

    asyncio.run(main())
