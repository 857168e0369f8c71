# shellcheck shell=bash
# shellcheck disable=SC2034  # local/data.sh reads these
# Folder or file with your data, for runs without --data; write it after the equals sign.
OWN_DATA=
