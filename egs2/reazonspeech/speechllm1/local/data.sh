#!/usr/bin/env bash
# Prepare ${datadir}/{train,dev,test} of ReazonSpeech, and the paper's other test sets if
# db.sh has their folders.
set -euo pipefail

reazonspeech_dir=
datadir=data
size=all
unpack_dir=downloads/reazonspeech
dev_utterances=1000
test_utterances=100
help_message="Usage: local/data.sh [options]
  --reazonspeech_dir DIR  the download: TSV and shards [REAZONSPEECH in db.sh]
  --datadir DIR           output folder of the sets [${datadir}]
  --size SIZE             tiny, small, medium, large or all [${size}]
  --unpack_dir DIR        output folder of unpacked shards [${unpack_dir}]
  --dev_utterances N      size of dev [${dev_utterances}]
  --test_utterances N     size of test [${test_utterances}]"
. utils/parse_options.sh
find_corpus --reazonspeech_dir "${reazonspeech_dir}" REAZONSPEECH \
    "that holds ${size}.tsv and the shards"

python3 -m speechllm.bin.prepare_data reazonspeech --reazonspeech_dir "${corpus_dir}" \
    --output "${datadir}" --size "${size}" --unpack_dir "${unpack_dir}" \
    --dev_utterances "${dev_utterances}" --test_utterances "${test_utterances}"
if [ -n "${JSUT:-}" ]; then
    python3 -m speechllm.bin.prepare_data jsut --jsut_dir "${JSUT}" --output "${datadir}"
fi
if [ -d "${COMMONVOICE:-/nowhere}/ja" ]; then
    python3 -m speechllm.bin.prepare_data common_voice --lang ja --splits test \
        --common_voice_dir "${COMMONVOICE}" --prefix common_voice_ja_ --output "${datadir}"
fi
