# syntax=docker/dockerfile:1

# docker build -t queue-worker --build-arg VERSION="$(git describe --tags --always)" .
# Your own handlers: an image `FROM queue-worker` that copies jobs.py into /app and sets QUEUE_WORKER_APP=jobs:app.

FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY queue_worker queue_worker
COPY sql sql
# The environment gets no pip: nothing is installed at run time. Its modules are compiled here, because later nobody can.
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip \
    pip wheel --no-deps --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/queue-worker \
    && wheel="$(echo /wheels/queue_worker-*.whl)" \
    && pip --python /opt/queue-worker/bin/python install "${wheel}[api,stripe,pdf,otel]"

FROM python:3.12-slim
ARG VERSION=""
LABEL org.opencontainers.image.title="queue_worker" \
      org.opencontainers.image.description="The worker of pgmq queues on Supabase or any Postgres, with its HTTP API" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}"
# A number, so that Kubernetes can tell that it is not root. /data is for what outlives the container: mount a volume.
RUN groupadd --gid 10001 queue-worker \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin queue-worker \
    && install --directory --owner=10001 --group=10001 /data
COPY --from=build /opt/queue-worker /opt/queue-worker
# Only /tmp and /data are written, so the root file system may be read-only.
ENV PATH="/opt/queue-worker/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    QUEUE_WORKER_STATE_DIR=/tmp/queue-worker \
    QUEUE_WORKER_OUTBOX_DIR=/data/outbox \
    QUEUE_WORKER_REPORTS_DIR=/data/reports
WORKDIR /app
USER 10001:10001
EXPOSE 3001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=10s --start-period=30s --retries=3 CMD ["queue-worker", "health"]
# Without a token the API is for this container alone. QUEUE_WORKER_API_TOKEN and QUEUE_WORKER_API_HOST=0.0.0.0 open it.
CMD ["queue-worker", "start", "--with-api"]
