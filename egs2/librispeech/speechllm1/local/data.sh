#!/usr/bin/env bash
# Prepare ${datadir}/{train_960,dev,dev_clean,dev_other,test_clean,test_other} of
# LibriSpeech.
set -euo pipefail

datadir=data
librispeech_dir=
train_set=train_960
download=false
url=
allow_partial=false
help_message="Usage: local/data.sh [options]
  --librispeech_dir DIR  the corpus, or the folder that holds it [LIBRISPEECH in db.sh]
  --train_set NAME       train_960, train_clean_460 or train_clean_100 [${train_set}]
  --download BOOL        download what is missing into that folder [${download}; downloads]
  --url URL              address of the archives, such as a mirror's [openslr.org]
  --allow_partial BOOL   accept parts with another number of utterances [${allow_partial}]
  --datadir DIR          output folder of the sets [${datadir}]"
. utils/parse_options.sh
if "${download}"; then
    . ./db.sh
    librispeech_dir=${librispeech_dir:-${LIBRISPEECH:-downloads}}
fi
find_corpus "--librispeech_dir or --download true" "${librispeech_dir}" LIBRISPEECH \
    "that holds dev-clean, …"

options=()
"${download}" && options+=(--download)
"${allow_partial}" && options+=(--allow_partial)
python3 -m speechllm.bin.prepare_data librispeech --librispeech_dir "${corpus_dir}" \
    --train_set "${train_set}" --output "${datadir}" ${url:+--url "${url}"} "${options[@]}"
