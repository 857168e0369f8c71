# shellcheck shell=bash
# shellcheck disable=SC2034  # local/data.sh reads these
# Corpus folders on this machine; write yours after the equals sign, in quotes
# if it has spaces.
COMMONVOICE=
