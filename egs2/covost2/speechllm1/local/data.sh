#!/usr/bin/env bash
# data/{train,dev,test} of CoVoST 2.
set -euo pipefail

datadir=data
covost2_dir=
common_voice_dir=
src_lang=en
tgt_lang=de
help_message="Usage: local/data.sh [--covost2_dir DIR] [--src_lang en,fr] [--tgt_lang de,en] [--datadir ${datadir}]
  --covost2_dir DIR       folder of covost_v2.en_de.tsv, … [COVOST2 in db.sh]
  --common_voice_dir DIR  folder with Common Voice 4.0 in en/, fr/, … [--covost2_dir]
  --src_lang LIST         languages spoken, parted by commas [${src_lang}]
  --tgt_lang LIST         languages translated into, parted by commas [${tgt_lang}]
  --datadir DIR           where the sets are made [${datadir}]"
. utils/parse_options.sh
. ./db.sh

source_dir=${covost2_dir:-${COVOST2:-}}
if [ -z "${source_dir}" ]; then
    echo "local/data.sh: error: write COVOST2=<folder of covost_v2.*.tsv> into db.sh, or give --covost2_dir" >&2
    exit 1
fi
. ./path.sh
# shellcheck disable=SC2086 # languages are words
python3 -m speechllm.bin.prepare_data covost2 --covost2_dir "${source_dir}" \
    ${common_voice_dir:+--common_voice_dir "${common_voice_dir}"} \
    --src_lang ${src_lang//,/ } --tgt_lang ${tgt_lang//,/ } --output "${datadir}"
