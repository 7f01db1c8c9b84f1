# The gateway: Python, gRPC, Pillow, OpenCV; no torch and no Java. build.sh builds it from the root of the repository.
# Name BASE by digest for a reproducible build.
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS build
# hadolint ignore=DL3008 # Debian keeps no old versions; BASE by digest and a snapshot mirror pin them
RUN apt-get update \
    && apt-get install --no-install-recommends -y python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml ./
COPY deploy/docker/tools.lock deploy/docker/gateway.lock deploy/docker/
# The tools stay in this stage. Only /opt/mobilevision is copied to the image.
RUN python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir --require-hashes -r deploy/docker/tools.lock
RUN python3 -m venv --without-pip /opt/mobilevision \
    && /opt/tools/bin/pip --python /opt/mobilevision/bin/python install --no-cache-dir --no-deps \
       --require-hashes -r deploy/docker/gateway.lock
COPY README.md LICENSE ./
COPY mobilevision mobilevision
COPY service service
COPY handlers handlers
COPY model_store model_store
RUN rm -rf model_store/archives \
    && /opt/tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation -w dist . \
    && /opt/tools/bin/pip --python /opt/mobilevision/bin/python install --no-cache-dir --no-deps dist/*.whl \
    && /opt/tools/bin/cyclonedx-py environment /opt/mobilevision/bin/python --pyproject pyproject.toml \
       --output-reproducible -o /opt/mobilevision/sbom.cdx.json

FROM ${BASE}
# tini ends the container on a SIGTERM that comes before Python handles signals, and reaps zombie processes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf /usr/share/doc /usr/share/man /usr/share/locale
COPY --from=build /opt/mobilevision /opt/mobilevision
COPY --chmod=0755 deploy/docker/gateway-probe /usr/local/bin/gateway-probe
# ANONYMOUS=allow: the gateway listens on all addresses of its container, where it would refuse calls without credentials.
# What reaches the container is decided outside of it. MOBILEVISION_ANONYMOUS=deny requires callers (docs/access.md).
ENV PATH=/opt/mobilevision/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MOBILEVISION_ARCHIVES=/models \
    MOBILEVISION_ANONYMOUS=allow \
    MOBILEVISION_GRPC_HOST=0.0.0.0 \
    MOBILEVISION_GRPC_PORT=50051 \
    MOBILEVISION_HTTP_HOST=0.0.0.0 \
    MOBILEVISION_HTTP_PORT=50052 \
    MOBILEVISION_TORCHSERVE_INFERENCE=127.0.0.1:7070 \
    MOBILEVISION_TORCHSERVE_MANAGEMENT=127.0.0.1:7071 \
    MOBILEVISION_TORCHSERVE_KEY_FILE=/run/keys/key_file.json
USER 10001:10001
EXPOSE 50051 50052
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["gateway-probe"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "mobilevision"]
CMD ["serve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="mobilevision gateway" \
      org.opencontainers.image.description="gRPC gateway of mobilevision: decodes, batches by deadline, answers" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0"
