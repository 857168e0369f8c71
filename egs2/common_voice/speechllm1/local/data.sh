#!/usr/bin/env bash
# Prepare ${datadir}/{train,dev,test} of one language of a Common Voice release.
set -euo pipefail

common_voice_dir=
datadir=data
lang=ja
splits=train,dev,test
split_dir=
train_split=train
min_share=0.9
help_message="Usage: local/data.sh [options]
  --common_voice_dir DIR  any release from 4.0 on, such as cv-corpus-8.0-2022-01-19 [COMMONVOICE in db.sh]
  --datadir DIR           output folder of the sets [${datadir}]
  --lang LANG             language, a folder of the release [${lang}]
  --splits LIST           splits to prepare, separated by commas [${splits}]
  --split_dir DIR         TSV files of the splits, such as those of another release [LANG's folder]
  --train_split NAME      train (Mozilla's) or validated (ESPnet's: all but dev and test) [${train_split}]
  --min_share SHARE       least share of each split's clips that the release must have [${min_share}]"
. utils/parse_options.sh
find_corpus --common_voice_dir "${common_voice_dir}" COMMONVOICE \
    "of a release, which holds ${lang}/clips,"

# shellcheck disable=SC2086 # one word per split
python3 -m speechllm.bin.prepare_data common_voice --common_voice_dir "${corpus_dir}" \
    --output "${datadir}" --lang "${lang}" --splits ${splits//,/ } \
    ${split_dir:+--split_dir "${split_dir}"} --train_split "${train_split}" \
    --min_share "${min_share}"
