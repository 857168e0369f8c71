#!/usr/bin/env bash
# Prepare ${datadir}/{train,dev,test} of FLEURS.
set -euo pipefail

datadir=data
fleurs_dir=
src_lang=en
tgt_lang=
download=false
unpack_dir=
help_message="Usage: local/data.sh [options]
  --fleurs_dir DIR  folder that holds data/en_us, … or en_us, … [FLEURS in db.sh]
  --src_lang LIST   spoken languages, separated by commas [${src_lang}]
  --tgt_lang LIST   languages of translations, separated by commas [none]
  --download BOOL   download what is missing into that folder [${download}; downloads/fleurs]
  --unpack_dir DIR  folder to unpack the archives into [downloads/fleurs]
  --datadir DIR     output folder of the sets [${datadir}]"
. utils/parse_options.sh
options=()
if "${download}"; then
    . ./db.sh
    fleurs_dir=${fleurs_dir:-${FLEURS:-downloads/fleurs}}
    unpack_dir=${unpack_dir:-${fleurs_dir}}
    options=(--download)
fi
find_corpus "--fleurs_dir or --download true" "${fleurs_dir}" FLEURS \
    "that holds data/en_us, …"

# shellcheck disable=SC2086 # one word per language
python3 -m speechllm.bin.prepare_data fleurs --fleurs_dir "${corpus_dir}" \
    --src_lang ${src_lang//,/ } --tgt_lang ${tgt_lang//,/ } --output "${datadir}" \
    ${unpack_dir:+--unpack_dir "${unpack_dir}"} "${options[@]}"
