#!/usr/bin/env bash
# Prepare ${datadir}/{train,dev,test} of one language of a Common Voice release.
set -euo pipefail

common_voice_dir=
datadir=data
lang=ja
help_message="Usage: local/data.sh [options]
  --common_voice_dir DIR  a release, such as cv-corpus-8.0-2022-01-19 [COMMONVOICE in db.sh]
  --datadir DIR           output folder of the sets [${datadir}]
  --lang LANG             language, a folder of the release [${lang}]"
. utils/parse_options.sh
find_corpus --common_voice_dir "${common_voice_dir}" COMMONVOICE \
    "of a release, which holds ${lang}/clips,"

python3 -m speechllm.bin.prepare_data common_voice --common_voice_dir "${corpus_dir}" \
    --output "${datadir}" --lang "${lang}"
