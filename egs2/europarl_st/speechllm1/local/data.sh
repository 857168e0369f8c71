#!/usr/bin/env bash
# Prepare ${datadir}/{train,dev,test} of Europarl-ST, and train-noisy if asked for.
set -euo pipefail

datadir=data
europarl_st_dir=
src_lang=en
tgt_lang=de
download=false
noisy=false
url=
help_message="Usage: local/data.sh [options]
  --europarl_st_dir DIR  folder that holds v1.1, or en, de, … [EUROPARL_ST in db.sh]
  --src_lang LIST        spoken languages, separated by commas [${src_lang}]
  --tgt_lang LIST        target languages, separated by commas [${tgt_lang}]
  --download BOOL        download the corpus into that folder [${download}; downloads]
  --url URL              address of the archive [the publisher's]
  --noisy BOOL           prepare the set train-noisy, too [${noisy}]
  --datadir DIR          output folder of the sets [${datadir}]"
. utils/parse_options.sh
options=()
"${noisy}" && options+=(--noisy)
if "${download}"; then
    . ./db.sh
    europarl_st_dir=${europarl_st_dir:-${EUROPARL_ST:-downloads}}
    options+=(--download ${url:+--url "${url}"})
fi
find_corpus "--europarl_st_dir or --download true" "${europarl_st_dir}" EUROPARL_ST \
    "that holds v1.1"

# shellcheck disable=SC2086 # one word per language
python3 -m speechllm.bin.prepare_data europarl_st --europarl_st_dir "${corpus_dir}" \
    --src_lang ${src_lang//,/ } --tgt_lang ${tgt_lang//,/ } --output "${datadir}" \
    "${options[@]}"
