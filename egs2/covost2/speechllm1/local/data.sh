#!/usr/bin/env bash
# Prepare ${datadir}/{train,dev,test} of CoVoST 2.
set -euo pipefail

datadir=data
covost2_dir=
common_voice_dir=
src_lang=en
tgt_lang=de
min_share=0.9
help_message="Usage: local/data.sh [options]
  --covost2_dir DIR       folder of covost_v2.en_de.tsv, … [COVOST2 in db.sh]
  --common_voice_dir DIR  folder with any Common Voice release in en/, fr/, … [--covost2_dir]
  --src_lang LIST         source languages, separated by commas [${src_lang}]
  --tgt_lang LIST         target languages, separated by commas [${tgt_lang}]
  --min_share SHARE       least share of each set's clips that the release must have [${min_share}]
  --datadir DIR           output folder of the sets [${datadir}]"
. utils/parse_options.sh
find_corpus --covost2_dir "${covost2_dir}" COVOST2 "that holds covost_v2.*.tsv"

# shellcheck disable=SC2086 # one word per language
python3 -m speechllm.bin.prepare_data covost2 --covost2_dir "${corpus_dir}" \
    ${common_voice_dir:+--common_voice_dir "${common_voice_dir}"} \
    --src_lang ${src_lang//,/ } --tgt_lang ${tgt_lang//,/ } --output "${datadir}" \
    --min_share "${min_share}"
