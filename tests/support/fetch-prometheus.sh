#!/bin/sh
# Makes sure that prometheus and promtool are there: the system's own, or Debian's package unpacked into the folder that is
# named, without installing a daemon.
set -eu
into=${1:?usage: fetch-prometheus.sh DIR}
if command -v promtool >/dev/null 2>&1 && command -v prometheus >/dev/null 2>&1; then exit 0; fi
[ ! -x "$into/usr/bin/promtool" ] || exit 0
if ! command -v apt-get >/dev/null 2>&1; then
    echo "Please install prometheus with this system's package manager, then run the same command again." >&2
    exit 1
fi
mkdir -p "$into"
into=$(cd "$into" && pwd)
cd "$into"
apt-get download -qq prometheus
for package in prometheus_*.deb; do dpkg-deb -x "$package" .; done
rm -f prometheus_*.deb
