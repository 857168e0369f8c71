#!/usr/bin/env bash
# Prepare ${datadir}/{train,dev,tst-COMMON,tst-HE} of MuST-C, any version.
set -euo pipefail

datadir=data
must_c_dir=
tgt_lang=de
espnet=false
help_message="Usage: local/data.sh [options]
  --must_c_dir DIR  folder that holds en-de, en-fr, … [MUST_C in db.sh]
  --tgt_lang LIST   target languages, separated by commas [${tgt_lang}]
  --espnet BOOL     segments and texts of ESPnet's recipe [${espnet}]
  --datadir DIR     output folder of the sets [${datadir}]"
. utils/parse_options.sh
find_corpus --must_c_dir "${must_c_dir}" MUST_C "that holds en-de, en-fr, …"

options=()
"${espnet}" && options=(--espnet)
# shellcheck disable=SC2086 # one word per language
python3 -m speechllm.bin.prepare_data must_c --must_c_dir "${corpus_dir}" \
    --tgt_lang ${tgt_lang//,/ } --output "${datadir}" "${options[@]}"
