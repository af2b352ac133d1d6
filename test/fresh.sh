#!/bin/sh
# From a fresh Debian or Ubuntu to a running program, in one command.
#
#   sh test/fresh.sh example [ARGUMENTS]   installs what building needs, builds and runs sft
#   sh test/fresh.sh test [ARGUMENTS]      installs what the tests need, builds and runs them
#
# ARGUMENTS are passed to make.
set -eu
cd "$(dirname "$0")/.."
what=${1:-}
[ $# -gt 0 ] && shift
case $what in
example) packages="gcc make pkg-config libjansson-dev libpcre2-dev" ;;
test)    packages="gcc g++ make pkg-config libjansson-dev libpcre2-dev check gnuplot-nox" ;;
*)       echo "usage: sh test/fresh.sh example|test [make arguments]" >&2; exit 2 ;;
esac

# Only packages that dpkg does not know as installed are installed with apt-get, which needs root.
missing=
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
        missing="$missing $package"
done
if [ -n "$missing" ]; then
    sudo=
    if [ "$(id -u)" != 0 ]; then sudo=sudo; fi
    echo "→ installing$missing"
    $sudo apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends \
        $missing libc6-dev
fi

if [ "$what" = example ]; then
    make -j"$(nproc)" sft "$@"
    exec ./sft
fi
# -O: what a test prints stays together
exec make -j"$(nproc)" -O test "$@"
