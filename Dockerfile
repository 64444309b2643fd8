# One image for API, workers and migrations; the command says which.
FROM python:3.11-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/assay
ENV PATH=/opt/assay/bin:$PATH
WORKDIR /build

# the lock alone first: its layer stays as long as the dependencies do
COPY requirements.lock ./
RUN pip install --quiet --require-hashes -r requirements.lock
COPY pyproject.toml README.md ./
COPY activities activities
COPY agents agents
COPY api api
COPY db db
COPY domain domain
COPY gateway gateway
COPY runtime runtime
COPY workflows workflows
RUN pip install --quiet --no-deps --no-build-isolation .

FROM python:3.11-slim

COPY --from=build /opt/assay /opt/assay
# /data/objects is made here so that a new volume takes over its owner
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin assay \
    && install --directory --owner=assay --group=assay --mode=0700 /data /data/objects
USER assay
WORKDIR /data

ENV PATH=/opt/assay/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ASSAY_FOLDER=/data \
    ASSAY_LOG__FORMAT=json

ENTRYPOINT ["assay"]
CMD ["--help"]
