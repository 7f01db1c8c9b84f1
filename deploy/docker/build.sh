#!/usr/bin/env bash
# Builds the images, with or without a container daemon:
#
#   deploy/docker/build.sh [gateway] [torchserve] [models] [server]      default: gateway and torchserve
#
# gateway and torchserve are the containers of a pod, models has the archives only, server is all in one container. The tag of
# an image is the version and a digest of what is in it. Names and tags are written where they are used:
# deploy/k8s/images/kustomization.yaml, and deploy/docker/.env for compose.yaml.
#
# Environment, all optional:
#   ENGINE     docker, podman or buildah; default: the first one that is installed
#   REGISTRY   name before /gateway and the others, such as registry.example/vision. Default: localhost/mobilevision, which is
#              never pulled from anywhere
#   TORCH      build of torch: cpu (default) or a CUDA build such as cu130; torchserve and server are then named
#              torchserve-cuda and server-cuda
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
build_of_torch=${TORCH:-cpu}
registry=${REGISTRY:-localhost/mobilevision}

# Twelve digits of a digest over the given words, and the names and bytes of the files in the given folders.
digest() { # words... -- paths...
  local words=()
  while [ "$1" != -- ]; do words+=("$1"); shift; done
  shift
  { printf '%s\n' "${words[@]}"
    find "$@" -type f -not -path '*/__pycache__/*' -not -path 'model_store/archives/*' -not -path 'model_store/checkpoints/*' \
      -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
  } | sha256sum | cut -c 1-12
}
code=(pyproject.toml constraints.txt README.md LICENSE mobilevision service handlers model_store
  deploy/docker/*.Dockerfile deploy/docker/*.lock deploy/docker/requirements.py deploy/docker/*-probe)

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

# Writes the name of a built image where it is used.
pin() { # image, name, tag
  sed -i "/name: mobilevision\/$1\$/{n;s|newName: .*|newName: $2|;n;s|newTag: .*|newTag: $3|}" deploy/k8s/images/kustomization.yaml
  case $1 in server*) echo "SERVER_IMAGE=$2:$3" > deploy/docker/.env ;; esac
}

for image in "${images[@]}"; do
  name=$image
  case $image in
    gateway)
      specific=(-f deploy/docker/gateway.Dockerfile)
      tag=$version-$(digest "$base" -- "${code[@]}")
      ;;
    torchserve | models | server)
      index=https://download.pytorch.org/whl/$build_of_torch
      [ -z "${WHEELS:-}" ] || index=
      specific=(-f deploy/docker/torchserve.Dockerfile --build-arg "ARCHIVES=$archives"
        --build-arg "TORCH=$torch_version+$build_of_torch" --build-arg "TORCH_INDEX=$index")
      ls "$archives"/*.mar >/dev/null || { echo "error: no archives in $archives; run: make images" >&2; exit 1; }
      [ "$image" = torchserve ] || specific+=(--target "$image")
      archive_digests=$(cd "$archives" && sha256sum -- *.mar *.card.json)
      if [ "$image" = models ]; then
        tag=$version-$(printf '%s' "$archive_digests" | sha256sum | cut -c 1-12)
      else
        tag=$version-$(digest "$base" "$build_of_torch" "$archive_digests" -- "${code[@]}")
      fi
      if [ "$build_of_torch" != cpu ]; then
        specific+=(--build-arg "EXTRAS=models signing store") # OpenVINO is for CPUs
        [ "$image" = models ] || name=$image-cuda
      fi
      ;;
    *) echo "error: unknown image $image; use gateway, torchserve, models or server" >&2; exit 1 ;;
  esac
  echo "building $registry/$name:$tag with $engine"
  "${build[@]}" "${options[@]}" "${specific[@]}" -t "$registry/$name:$tag" .
  pin "$name" "$registry/$name" "$tag"
done
