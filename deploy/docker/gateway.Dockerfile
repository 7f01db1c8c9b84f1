# The gateway: Python, gRPC, Pillow, OpenCV. No torch, no Java. Build it in the repository's root: see build.sh.
# For a build that never changes, give BASE with its digest.
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS build
# hadolint ignore=DL3008 # Debian keeps no old versions; BASE by digest and a snapshot mirror pin them
RUN apt-get update \
    && apt-get install --no-install-recommends -y python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt ./
COPY deploy/docker/requirements.py deploy/docker/
# The tools stay in this stage: only /opt/mobilevision is copied on.
RUN python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir -c constraints.txt pip hatchling \
    && /opt/tools/bin/pip install --no-cache-dir cyclonedx-bom==7.5.0
RUN python3 -m venv --without-pip /opt/mobilevision \
    && /opt/tools/bin/python deploy/docker/requirements.py tracing > requirements.txt \
    && /opt/tools/bin/pip --python /opt/mobilevision/bin/python install --no-cache-dir -c constraints.txt -r requirements.txt
COPY README.md LICENSE ./
COPY service service
COPY handlers handlers
COPY model_store model_store
RUN rm -rf model_store/archives \
    && /opt/tools/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation -w dist . \
    && /opt/tools/bin/pip --python /opt/mobilevision/bin/python install --no-cache-dir --no-deps dist/*.whl \
    && /opt/tools/bin/cyclonedx-py environment /opt/mobilevision/bin/python --pyproject pyproject.toml \
       --output-reproducible -o /opt/mobilevision/sbom.cdx.json

FROM ${BASE}
# tini: a SIGTERM that comes before Python listens for it must end the container, and nobody is left a zombie.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf /usr/share/doc /usr/share/man /usr/share/locale
COPY --from=build /opt/mobilevision /opt/mobilevision
COPY --chmod=0755 deploy/docker/gateway-probe /usr/local/bin/gateway-probe
ENV PATH=/opt/mobilevision/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MOBILEVISION_ARCHIVES=/models \
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
