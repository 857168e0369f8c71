#!/usr/bin/env bash
# data/{train,dev,test} of one language of a Common Voice release.
set -euo pipefail

common_voice_dir=
datadir=data
lang=ja
help_message="Usage: local/data.sh [--common_voice_dir DIR] [--datadir ${datadir}] [--lang ${lang}]
  --common_voice_dir DIR  a release, such as cv-corpus-8.0-2022-01-19 [COMMONVOICE in db.sh]
  --datadir DIR           where train, dev and test are made [${datadir}]
  --lang LANG             folder of the release [${lang}]"
. utils/parse_options.sh
. ./db.sh

source_dir=${common_voice_dir:-${COMMONVOICE:-}}
if [ -z "${source_dir}" ]; then
    echo "local/data.sh: error: db.sh has no line COMMONVOICE=…; write the folder of a release there, which holds ${lang}/clips" >&2
    exit 1
fi
. ./path.sh
python3 -m speechllm.bin.prepare_data common_voice --common_voice_dir "${source_dir}" \
    --output "${datadir}" --lang "${lang}"
