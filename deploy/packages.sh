#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs what is missing of the package groups named (build, run, test, lint) from packages.txt.
#   deploy/packages.sh build test         installs through apt, as root or by sudo
#   deploy/packages.sh --list build test  only prints the names
set -eu
here=$(dirname "$0")
list=no
if [ "${1:-}" = --list ]; then list=yes; shift; fi
for group in "$@"; do
    grep -q "^$group " "$here/packages.txt" || { echo "packages.sh: no group \"$group\"" >&2; exit 2; }
done
names=$(for group in "$@"; do awk -v g="$group" '$1 == g { print $2 }' "$here/packages.txt"; done)
if [ "$list" = yes ]; then echo $names; exit 0; fi
missing=
for name in $names; do
    dpkg-query -W -f '${Status}' "$name" 2>/dev/null | grep -q 'ok installed' || missing="$missing $name"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ]; then run=
elif command -v sudo >/dev/null 2>&1 && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
    run="sudo env DEBIAN_FRONTEND=noninteractive"
else
    echo "openmoed needs these Debian packages, and this user can't install them (neither root nor sudo):" >&2
    echo "  apt-get install$missing" >&2
    exit 1
fi
echo "installing:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# Some packages would start a server (prometheus, nginx); the tests start their own.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap '$run rm -f $policy' EXIT
    $run sh -c "printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy"
fi
$run apt-get update -qq
$run apt-get install -y -qq --no-install-recommends $missing >/dev/null
