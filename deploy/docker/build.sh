#!/usr/bin/env bash
# Builds the images, with or without a container daemon:
#
#   deploy/docker/build.sh [gateway] [torchserve] [models]      default: gateway and torchserve
#
# Environment, all optional:
#   ENGINE     docker, podman or buildah; default: the first one that is installed
#   PREFIX     name before /gateway and /torchserve; default: mobilevision
#   TORCH      build of torch for torchserve: cpu (default) or a CUDA build such as cu130, whose tag is VERSION-cuda
#   ARCHIVES   folder below model_store whose archives are put into the image; default: model_store/archives
#   BASE       base image; default: Debian bookworm slim. Name it by digest for a reproducible build
# Without access to a registry (needs debootstrap and buildah, run as root):
#   DEBOOTSTRAP=1   first makes the base image from the mirror of apt, if it does not exist
#   PIP_CONF, CA    files mounted as /etc/pip.conf and /run/buildca.crt; PIP_CONF must name the latter
#   WHEELS          folder mounted as /opt/wheels; torch then comes from it, not from TORCH_INDEX
set -euo pipefail
cd "$(dirname "$0")/../.."

images=("$@")
[ ${#images[@]} -gt 0 ] || images=(gateway torchserve)
for engine in ${ENGINE:-docker podman buildah}; do
  command -v "$engine" >/dev/null && break
done
command -v "$engine" >/dev/null || { echo "error: none of docker, podman, buildah is installed" >&2; exit 1; }
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
base=${BASE:-docker.io/library/debian:bookworm-slim}
archives=${ARCHIVES:-model_store/archives}
torch_version=$(sed -n 's/^torch==//p' constraints.txt)

debootstrap_base() {
  buildah inspect --type image "$base" >/dev/null 2>&1 && return
  local root mirror container
  root=$(mktemp -d)
  # shellcheck disable=SC2016 # apt replaces it
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | head -n 1)
  debootstrap --variant=minbase bookworm "$root" "$mirror"
  rm -rf "${root:?}"/dev/* "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
  tar -C "$root" -cf "$root.tar" .
  container=$(buildah from scratch)
  buildah add "$container" "$root.tar" /
  buildah config --cmd /bin/bash "$container"
  buildah commit --rm "$container" "$base"
  rm -rf "$root" "$root.tar"
}

options=(--build-arg "BASE=$base" --build-arg "VERSION=$version"
  --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)"
  --build-arg "CREATED=$(date -u -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}" +%Y-%m-%dT%H:%M:%SZ)")
if [ "$engine" = docker ]; then
  build=(docker build)
elif [ "$engine" = podman ]; then
  build=(podman build --format docker) # HEALTHCHECK is not in the OCI format
else
  build=(buildah bud --format docker --isolation chroot --layers)
  [ -z "${PIP_CONF:-}" ] || options+=(--volume "$PIP_CONF:/etc/pip.conf:ro")
  [ -z "${CA:-}" ] || options+=(--volume "$CA:/run/buildca.crt:ro")
  [ -z "${WHEELS:-}" ] || options+=(--volume "$WHEELS:/opt/wheels:ro")
fi
if [ -n "${DEBOOTSTRAP:-}" ]; then
  debootstrap_base
  options+=(--pull-never)
fi

for image in "${images[@]}"; do
  tag=${PREFIX:-mobilevision}/$image:$version
  case $image in
    gateway) specific=(-f deploy/docker/gateway.Dockerfile) ;;
    torchserve | models)
      build_of_torch=${TORCH:-cpu}
      index=https://download.pytorch.org/whl/$build_of_torch
      [ -z "${WHEELS:-}" ] || index=
      specific=(-f deploy/docker/torchserve.Dockerfile --build-arg "ARCHIVES=$archives"
        --build-arg "TORCH=$torch_version+$build_of_torch" --build-arg "TORCH_INDEX=$index")
      ls "$archives"/*.mar >/dev/null || { echo "error: no archives in $archives; run: make images" >&2; exit 1; }
      [ "$image" = torchserve ] || specific+=(--target models)
      if [ "$build_of_torch" != cpu ]; then
        specific+=(--build-arg "EXTRAS=models signing store") # OpenVINO is for CPUs
        [ "$image" = models ] || tag=$tag-cuda
      fi
      ;;
    *) echo "error: unknown image $image; use gateway, torchserve or models" >&2; exit 1 ;;
  esac
  echo "building $tag with $engine"
  "${build[@]}" "${options[@]}" "${specific[@]}" -t "$tag" .
done
