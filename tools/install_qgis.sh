#!/bin/sh
# Makes sure that QGIS 3.40 or newer, its Python bindings, Xvfb and python3-venv are installed.
# Debian 12 itself offers 3.22 only, so its backports are added there; the mirror is the one that apt already uses.
set -eu

packages="qgis python3-qgis qgis-providers xvfb xauth python3-venv gdal-bin"
wanted=3.40

say() { printf '%s\n' "install_qgis: $*" >&2; }

installed() { dpkg-query --show --showformat='${db:Status-Status} ${Version}\n' "$1" 2>/dev/null | sed -n 's/^installed //p'; }

complete() {
    command -v dpkg-query >/dev/null 2>&1 || return 1
    for package in $packages; do
        [ -n "$(installed "$package")" ] || return 1
    done
    dpkg --compare-versions "$(installed qgis)" ge "$wanted"
}

complete && exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    status=0
    for program in qgis qgis_process xvfb-run; do
        command -v "$program" >/dev/null 2>&1 || { say "missing: $program"; status=1; }
    done
    /usr/bin/python3 -c 'import qgis.core' 2>/dev/null || { say "missing: QGIS's Python bindings for /usr/bin/python3"; status=1; }
    /usr/bin/python3 -c 'import venv, ensurepip' 2>/dev/null || { say "missing: the venv module of /usr/bin/python3"; status=1; }
    [ "$status" = 0 ] || say "this system has no apt: install the above (QGIS $wanted or newer) with its package manager and run make again"
    exit "$status"
fi

root=
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null 2>&1 || { say "run as root, or install sudo: apt-get has to install $packages"; exit 1; }
    root=sudo
fi

offered() { LC_ALL=C apt-cache policy qgis | sed -n 's/^ *Candidate: //p'; }

$root apt-get update
target=
if ! dpkg --compare-versions "$(offered)" ge "$wanted"; then
    codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")
    # Other makers' repositories, too, are called after Debian's release.
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI) $(RELEASE)' | sort -u | sed -n "s/^Debian \(.*\) $codename\$/\1/p" | head -n 1)
    if [ "$codename" != bookworm ] || [ -z "$mirror" ]; then
        say "apt offers QGIS $(offered) and $wanted or newer is needed: add a package source that has it (qgis.org lists them) and run make again"
        exit 1
    fi
    target="--target-release $codename-backports"
    say "adding $codename-backports, which has QGIS $wanted"
    printf 'Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
        "$mirror" "$codename" | $root tee "/etc/apt/sources.list.d/$codename-backports.sources" >/dev/null
    $root apt-get update
fi
# shellcheck disable=SC2086  # both are lists of words
$root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $target $packages
complete || { say "apt finished, yet QGIS $wanted is not installed"; exit 1; }
