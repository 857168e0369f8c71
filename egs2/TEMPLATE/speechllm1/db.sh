# shellcheck shell=bash
# shellcheck disable=SC2034  # local/data.sh reads these
# Where the corpora lie on this machine; write the folder after the equals sign.
# "downloads" means that the recipe fetches the corpus into its own downloads/.
ASTERISK=downloads
CSJ=
COVOST2=
MUST_C=
COMMONVOICE=
JSUT=
REAZONSPEECH=
