# One image for every service: `docker run … tallystick services.metering serve`.

FROM python:3.11-slim-bookworm AS pins
COPY requirements/runtime.txt /tmp/runtime.txt
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r /tmp/runtime.txt

FROM python:3.11-slim-bookworm
# A fixed number, so that the owner of a mounted volume can be told it. /keys: where compose keeps the first API keys; /checkpoint: the newest checkpoint of the journal.
RUN useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin tallystick \
    && install -d -o tallystick -m 0700 /keys /checkpoint
COPY --from=pins /opt/venv /opt/venv
WORKDIR /app
COPY tallystick tallystick
COPY services services
COPY scripts/grpc_health.py scripts/grpc_health.py
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
# Compiled here, because the account that runs it may not write.
RUN python -m compileall -q tallystick services scripts
USER 10001
EXPOSE 50051 50052 50053 8053 9051 9052 9053
ENTRYPOINT ["python", "-m"]
CMD ["services.ledger", "serve"]
