#!/usr/bin/env bash
# Checks deploy/ with the tools that read it elsewhere.
#
#     tests/deploy.sh           the manifests, as kubectl renders them, against the schemas of
#                               Kubernetes, with unknown fields as errors
#     tests/deploy.sh image     builds the image and runs both programs out of it
#
# The schemas come from PyPI (kubernetes-validate, under target/deploy). Without kubectl the files
# are checked as they are, which comes to the same for a base that changes nothing.
#
# The image is built whole where the registry of its base image can be reached. Elsewhere the
# programs are built here, with the flags of deploy/Dockerfile, and its last stage is built from
# them; DS4_IMAGE_PROFILE=dev saves minutes. buildah is installed for it (as root, on Debian).
#
# Exit status: 0 if all is well, 1 if not; 77 if a tool cannot be had, which says nothing of the
# files.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly what=${1:-manifests}
readonly cache=$PWD/target/deploy
# The oldest release with every field that is used, and the newest that the schemas know.
readonly oldest=1.30

skip() {
    echo "deploy.sh: skipped: $1" >&2
    exit 77
}

install_schemas() {
    validate=$cache/venv/bin/kubernetes-validate
    [ ! -x "$validate" ] || return 0
    command -v python3 >/dev/null || skip "no python3 for the schemas of Kubernetes"
    (rm -rf "$cache/venv" && python3 -m venv "$cache/venv" &&
        "$cache/venv/bin/pip" install --quiet kubernetes-validate==1.37.0) \
        >"$cache/install.log" 2>&1 ||
        skip "cannot install the schemas of Kubernetes: $cache/install.log"
}

manifests() {
    install_schemas
    local files
    if command -v kubectl >/dev/null; then
        kubectl kustomize deploy/base >"$cache/base.yaml"
        files=("$cache/base.yaml")
    else
        echo "deploy.sh: no kubectl: the files as they are" >&2
        files=()
        local file
        for file in deploy/base/*.yaml; do
            [ "${file##*/}" = kustomization.yaml ] || files+=("$file")
        done
    fi
    "$validate" --strict --quiet "${files[@]}"
    "$validate" --strict --quiet --kubernetes-version "$oldest" "${files[@]}"
    echo "deploy.sh: the manifests fit the schemas of Kubernetes $oldest and the newest"
}

install_buildah() {
    command -v buildah >/dev/null && return
    { command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; } || skip "no buildah"
    (apt-get update -qq && apt-get install -y -qq --no-install-recommends buildah runc) \
        >"$cache/install.log" 2>&1 || skip "cannot install buildah: $cache/install.log"
}

in_storage() {
    buildah --root "$cache/storage" --runroot "$cache/run" --storage-driver vfs "$@"
}

# The last stage alone, from programs that are built here.
last_stage() {
    local target profile=${DS4_IMAGE_PROFILE:-dist}
    target=$(rustc -vV | sed -n 's/^host: //p')
    RUSTFLAGS=$(sed -n 's/^ENV RUSTFLAGS="\(.*\)"$/\1/p' deploy/Dockerfile) \
        cargo build --locked --profile "$profile" --target "$target" \
        --bin ds4-coord --bin ds4-expert
    local folder=$profile
    [ "$profile" != dev ] || folder=debug
    rm -rf "$cache/context"
    mkdir -p "$cache/context/out"
    cp "target/$target/$folder"/ds4-{coord,expert} "$cache/context/out/"
    sed -n '/^FROM scratch/,$p' deploy/Dockerfile | sed 's/--from=build //' >"$cache/context/Dockerfile"
    in_storage bud --isolation chroot --quiet --tag "$1" "$cache/context"
}

image() {
    install_buildah
    local version tag base
    version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -1)
    tag=ds4:$version
    trap 'in_storage rmi --all --force >/dev/null 2>&1; rm -rf "$cache/storage" "$cache/run" "$cache/context"' EXIT
    base=$(sed -n 's/^FROM \(.*\) AS build$/\1/p' deploy/Dockerfile)
    if timeout 120 buildah --root "$cache/storage" --runroot "$cache/run" --storage-driver vfs \
        pull --quiet "$base" >"$cache/pull.log" 2>&1; then
        in_storage bud --isolation chroot --file deploy/Dockerfile --tag "$tag" .
    else
        echo "deploy.sh: $base cannot be had: building the last stage alone" >&2
        last_stage "$tag"
    fi
    local container
    container=$(in_storage from --pull-never "localhost/$tag")
    local program
    for program in ds4-coord ds4-expert; do
        local said
        said=$(in_storage run --isolation chroot "$container" -- "$program" --version | head -1)
        echo "deploy.sh: $said"
        [ "$said" = "$program $version" ] || exit 1
    done
    in_storage images
    in_storage inspect --type image --format \
        'user {{.OCIv1.Config.User}}, stopped by {{.OCIv1.Config.StopSignal}}, runs {{.OCIv1.Config.Cmd}}' "$tag"
    in_storage rm "$container" >/dev/null
}

mkdir -p "$cache"
case $what in
manifests | image) "$what" ;;
*)
    echo "deploy.sh: nothing named $what" >&2
    exit 2
    ;;
esac
