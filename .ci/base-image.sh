#!/bin/sh
# Makes a Debian image from the package registry, where no image registry can be reached.
# Usage: .ci/base-image.sh [TAG]; needs root, debootstrap and a Docker Engine. Kept between calls.
set -eu

tag=${1:-mlebench-web-base:trixie-min}
cache=${XDG_CACHE_HOME:-/var/cache}/mlebench-web

if docker image inspect "$tag" >/dev/null 2>&1; then
    exit 0
fi
mkdir -p "$cache"
archive=$cache/trixie-min.tar
if [ ! -s "$archive" ]; then
    root=$(mktemp -d)
    trap 'rm -rf "$root"' EXIT
    # Debian 12's debootstrap may not know newer releases by name; they are made alike.
    scripts=/usr/share/debootstrap/scripts
    [ -e "$scripts/trixie" ] || ln -s sid "$scripts/trixie"
    debootstrap --variant=minbase --include=ca-certificates trixie "$root" \
        "${DEBIAN_MIRROR:-http://deb.debian.org/debian}"
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    tar --numeric-owner -C "$root" -cf "$archive.new" .
    mv "$archive.new" "$archive"
fi
docker import "$archive" "$tag" >/dev/null
