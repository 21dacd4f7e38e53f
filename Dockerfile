# syntax=docker/dockerfile:1

FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY queue_worker queue_worker
COPY sql sql
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m venv /opt/queue-worker \
    && wheel="$(echo /wheels/queue_worker-*.whl)" \
    && /opt/queue-worker/bin/pip install --no-cache-dir "${wheel}[api,stripe,pdf,otel]"

FROM python:3.12-slim
RUN useradd --system --user-group --no-create-home --home-dir /app queue-worker \
    && install --directory --owner=queue-worker --group=queue-worker /app
COPY --from=build /opt/queue-worker /opt/queue-worker
ENV PATH="/opt/queue-worker/bin:$PATH" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /app
USER queue-worker
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=3 CMD ["queue-worker", "health"]
CMD ["queue-worker", "start"]
