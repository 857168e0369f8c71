# shellcheck shell=bash
# shellcheck disable=SC2034  # local/data.sh reads these
# Corpus folders on this machine; write yours after the equals sign.
# "downloads" downloads the corpus into the folder of that name; with Debian's packages
# installed it is /usr/share/games/fillets-ng.
FILLETS=downloads
