#!/usr/bin/env bash
# data/{train,dev,test} of ReazonSpeech, and the paper's other test sets where they are.
set -euo pipefail

reazonspeech_dir=
datadir=data
size=all
unpack_dir=downloads/reazonspeech
dev_utterances=1000
test_utterances=100
help_message="Usage: local/data.sh [options]
  --reazonspeech_dir DIR  the download: TSV and shards [REAZONSPEECH in db.sh]
  --datadir DIR           where the sets are made [${datadir}]
  --size SIZE             tiny, small, medium, large or all [${size}]
  --unpack_dir DIR        where shards are unpacked to [${unpack_dir}]
  --dev_utterances N      [${dev_utterances}]
  --test_utterances N     [${test_utterances}]"
. utils/parse_options.sh
. ./db.sh

source_dir=${reazonspeech_dir:-${REAZONSPEECH:-}}
if [ -z "${source_dir}" ]; then
    echo "local/data.sh: error: db.sh has no line REAZONSPEECH=…; write the folder that holds ${size}.tsv and the shards there" >&2
    exit 1
fi
. ./path.sh
python3 -m speechllm.bin.prepare_data reazonspeech --reazonspeech_dir "${source_dir}" \
    --output "${datadir}" --size "${size}" --unpack_dir "${unpack_dir}" \
    --dev_utterances "${dev_utterances}" --test_utterances "${test_utterances}"
if [ -n "${JSUT:-}" ]; then
    python3 -m speechllm.bin.prepare_data jsut --jsut_dir "${JSUT}" --output "${datadir}"
fi
if [ -d "${COMMONVOICE:-/nowhere}/ja" ]; then
    python3 -m speechllm.bin.prepare_data common_voice --lang ja --splits test \
        --common_voice_dir "${COMMONVOICE}" --prefix common_voice_ja_ --output "${datadir}"
fi
