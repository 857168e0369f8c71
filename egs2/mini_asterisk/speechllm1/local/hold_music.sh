#!/usr/bin/env bash
# Download hold music (CC-BY-SA-3.0) from Debian's package if missing; print its folder.
set -euo pipefail
cd "$(dirname "$0")/.."
help_message="Usage: local/hold_music.sh
Downloads hold music (CC-BY-SA-3.0) from Debian's package if it is missing, and prints its
folder; takes no options."
. utils/parse_options.sh

music=downloads/asterisk-moh-opsound-2.03
if [ ! -d "${music}" ]; then
    package=asterisk-moh-opsound-g722_2.03-1.1_all.deb
    mkdir -p downloads
    scratch=$(mktemp -d downloads/.music.XXXXXX)
    trap 'rm -rf "${scratch}"' EXIT
    (
        cd "${scratch}"
        apt-get -q -o APT::Sandbox::User=root download asterisk-moh-opsound-g722=2.03-1.1
        echo "8d6b39d6f2e8feff54a042c4a25e1b72f3e2478d05ee372c92f77446fa0b1671  ${package}" \
            | sha256sum --check --quiet
        dpkg-deb -x "${package}" unpacked
    ) >&2
    mv "${scratch}/unpacked/usr/share/asterisk/moh" "${music}"
fi
echo "${music}"
