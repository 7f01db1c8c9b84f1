#!/usr/bin/env bash
# Build the images, with or without a daemon:
#
#   deploy/docker/build.sh [gateway] [torchserve] [models]      without a name: gateway and torchserve
#
# Environment, all optional:
#   ENGINE     docker, podman or buildah; otherwise the first of them that is there
#   PREFIX     name before /gateway and /torchserve (mobilevision)
#   TORCH      build of torch for torchserve: cpu (default), or CUDA's, such as cu130, which is tagged VERSION-cuda
#   ARCHIVES   folder, below model_store, whose archives are baked in (model_store/archives)
#   BASE       base image (Debian bookworm slim); give it by digest for a build that can be repeated
# Where no registry can be reached (needs debootstrap and buildah, run as root):
#   DEBOOTSTRAP=1   make the base image from apt's own mirror first, if it is not there
#   PIP_CONF, CA    files seen by the build as /etc/pip.conf and /run/buildca.crt (to be named in PIP_CONF)
#   WHEELS          folder seen by the build as /opt/wheels; torch then comes from there, not from TORCH_INDEX
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
  # shellcheck disable=SC2016 # apt fills it in
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
      ls "$archives"/*.mar >/dev/null || { echo "error: no archives in $archives: make images" >&2; exit 1; }
      [ "$image" = torchserve ] || specific+=(--target models)
      [ "$build_of_torch" = cpu ] || [ "$image" = models ] || tag=$tag-cuda
      ;;
    *) echo "error: no image $image; there are gateway, torchserve, models" >&2; exit 1 ;;
  esac
  echo "building $tag with $engine"
  "${build[@]}" "${options[@]}" "${specific[@]}" -t "$tag" .
done
