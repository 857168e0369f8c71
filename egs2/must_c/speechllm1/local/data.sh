#!/usr/bin/env bash
# data/{train,dev,tst-COMMON,tst-HE} of MuST-C, of any version.
set -euo pipefail

datadir=data
must_c_dir=
tgt_lang=de
help_message="Usage: local/data.sh [--must_c_dir DIR] [--tgt_lang de,fr] [--datadir ${datadir}]
  --must_c_dir DIR  folder that holds en-de, en-fr, … [MUST_C in db.sh]
  --tgt_lang LIST   languages translated into, parted by commas [${tgt_lang}]
  --datadir DIR     where the sets are made [${datadir}]"
. utils/parse_options.sh
. ./db.sh

source_dir=${must_c_dir:-${MUST_C:-}}
if [ -z "${source_dir}" ]; then
    echo "local/data.sh: error: write MUST_C=<folder that holds en-de> into db.sh, or give --must_c_dir" >&2
    exit 1
fi
. ./path.sh
# shellcheck disable=SC2086 # languages are words
python3 -m speechllm.bin.prepare_data must_c --must_c_dir "${source_dir}" \
    --tgt_lang ${tgt_lang//,/ } --output "${datadir}"
