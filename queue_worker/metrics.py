"""Everything Prometheus is told, made of what the database knows: right for any number of processes and restarts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST

Rows = Callable[..., list[dict[str, Any]]]
"""Calls a function of schema `queue_worker` by name, with its arguments; returns its rows."""

_COUNTERS = {
    "done": ("queue_worker_messages_done", "Runs that ended well"),
    "retried": ("queue_worker_messages_retried", "Runs that failed and come again"),
    "dead": ("queue_worker_messages_dead", "Messages given up, as dead letters"),
    "lost": ("queue_worker_messages_lost", "Messages given up because their process died too often"),
}
_COUNTS = {
    "lost_leases": ("queue_worker_leases_lost", "Runs whose lease another worker had by then"),
    "reconnects": ("queue_worker_reconnects", "Times a worker's queue had its database back"),
}
_HISTOGRAMS = {
    "duration": ("queue_worker_duration_seconds", "How long handlers ran"),
    "pickup": ("queue_worker_pickup_seconds", "How long messages had been due when they were claimed"),
}
_STATES = ("waiting", "delayed", "running", "dead")


class _Collector:
    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def collect(self) -> Iterator[Metric]:
        yield from _counters(self._rows("counters"))
        yield from _counts(self._rows("list_counts"))
        yield from _histograms(self._rows("list_timings"))
        yield from _gauges(self._rows("overview", minutes=1))
        yield from _workers(self._rows("list_workers"))


def render(rows: Rows) -> tuple[bytes, str]:
    """Return the metrics in Prometheus' text format, and its content type; raises what `rows` raises."""
    registry = CollectorRegistry(auto_describe=False)
    # Registering would collect once more, to learn the names.
    registry.register(_Described(_Collector(rows)))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _Described:
    def __init__(self, collector: _Collector) -> None:
        self._collector = collector

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        return self._collector.collect()


def _counters(rows: list[dict[str, Any]]) -> Iterator[Metric]:
    for column, (name, text) in _COUNTERS.items():
        family = CounterMetricFamily(name, text, labels=["queue"])
        for row in rows:
            family.add_metric([row["queue"]], row[column])
        yield family


def _counts(rows: list[dict[str, Any]]) -> Iterator[Metric]:
    for kind, (name, text) in _COUNTS.items():
        family = CounterMetricFamily(name, text, labels=["queue"])
        for row in rows:
            if row["name"] == kind:
                family.add_metric([row["queue"]], row["count"])
        yield family


def _histograms(rows: list[dict[str, Any]]) -> Iterator[Metric]:
    for kind, (name, text) in _HISTOGRAMS.items():
        family = HistogramMetricFamily(name, text, labels=["queue"])
        for queue in dict.fromkeys(row["queue"] for row in rows):
            found = [row for row in rows if row["queue"] == queue and row["kind"] == kind]
            if found:
                # Bounds of another version of this program would make a second histogram of the same name.
                newest = max(found, key=lambda row: sum(row["counts"]))
                family.add_metric([queue], _cumulated(newest), sum_value=newest["total"])
        yield family


def _cumulated(row: dict[str, Any]) -> list[tuple[str, float]]:
    sofar, buckets = 0, []
    for bound, count in zip([*map(str, map(float, row["bounds"])), "+Inf"], row["counts"], strict=True):
        sofar += count
        buckets.append((bound, float(sofar)))
    return buckets


def _gauges(rows: list[dict[str, Any]]) -> Iterator[Metric]:
    messages = GaugeMetricFamily(
        "queue_worker_messages", "Messages by state; waiting is an estimate beyond 10,000", labels=["queue", "state"]
    )
    oldest = GaugeMetricFamily(
        "queue_worker_oldest_seconds", "For how long the oldest waiting message is due", labels=["queue"]
    )
    paused = GaugeMetricFamily(
        "queue_worker_paused", "1 while a person or the circuit breaker has paused the queue", labels=["queue"]
    )
    for row in rows:
        for state in _STATES:
            messages.add_metric([row["queue"], state], row[state] or 0)
        oldest.add_metric([row["queue"]], row["oldest_seconds"] or 0.0)
        paused.add_metric([row["queue"]], float(row["paused_at"] is not None or row["broken_until"] is not None))
    yield from (messages, oldest, paused)


def _workers(rows: list[dict[str, Any]]) -> Iterator[Metric]:
    alive = [row for row in rows if row["alive"]]
    workers = GaugeMetricFamily("queue_worker_workers", "Worker processes seen within 45 seconds")
    workers.add_metric([], len(alive))
    slots = GaugeMetricFamily("queue_worker_slots", "Handlers that may run at once", labels=["worker"])
    busy = GaugeMetricFamily("queue_worker_slots_busy", "Handlers that run", labels=["worker"])
    for row in alive:
        slots.add_metric([row["worker"]], row["slots"])
        busy.add_metric([row["worker"]], row["busy"])
    yield from (workers, slots, busy)
