#!/usr/bin/env bash
# Prepare ${datadir}/{train,dev,test} of ReazonSpeech, and the paper's other test sets if
# db.sh has their folders.
set -euo pipefail

reazonspeech_dir=
datadir=data
size=all
download=false
url=
unpack_dir=
join=false
dev_utterances=1000
test_utterances=100
common_voice_split_dir=
help_message="Usage: local/data.sh [options]
  --reazonspeech_dir DIR  the download: TSV and shards [REAZONSPEECH in db.sh]
  --download BOOL         download what is missing into that folder [${download}; downloads]
  --url URL               address of the files, such as a mirror's [corpus.reazon-research.org]
  --datadir DIR           output folder of the sets [${datadir}]
  --size SIZE             tiny, small, medium, large, all; small-v1, medium-v1 or all-v1 [${size}]
  --unpack_dir DIR        unpack the shards into this folder [clips are read within the shards]
  --dev_utterances N      size of dev [${dev_utterances}]
  --test_utterances N     size of test [${test_utterances}]
  --join BOOL             join clips to more than 20 s, as in ESPnet's recipe [${join}]
  --common_voice_split_dir DIR  test.tsv of Common Voice 8.0, if COMMONVOICE is a later release [none]"
. utils/parse_options.sh
if "${download}"; then
    . ./db.sh
    reazonspeech_dir=${reazonspeech_dir:-${REAZONSPEECH:-downloads}}
fi
find_corpus --reazonspeech_dir "${reazonspeech_dir}" REAZONSPEECH \
    "that holds the TSV and the shards, or will hold them with --download true,"

options=()
"${download}" && options+=(--download)
"${join}" && options+=(--join)
if [ -z "${unpack_dir}" ] && ! "${join}" && compgen -G "downloads/reazonspeech/.*.done" > /dev/null; then
    unpack_dir=downloads/reazonspeech  # where an earlier release unpacked the shards
fi
python3 -m speechllm.bin.prepare_data reazonspeech --reazonspeech_dir "${corpus_dir}" \
    --output "${datadir}" --size "${size}" ${unpack_dir:+--unpack_dir "${unpack_dir}"} \
    --dev_utterances "${dev_utterances}" --test_utterances "${test_utterances}" \
    ${url:+--url "${url}"} "${options[@]}"
if [ -n "${JSUT:-}" ]; then
    python3 -m speechllm.bin.prepare_data jsut --jsut_dir "${JSUT}" --output "${datadir}"
fi
if [ -d "${COMMONVOICE:-/nowhere}/ja" ]; then
    python3 -m speechllm.bin.prepare_data common_voice --lang ja --splits test \
        ${common_voice_split_dir:+--split_dir "${common_voice_split_dir}"} \
        --common_voice_dir "${COMMONVOICE}" --prefix common_voice_ja_ --output "${datadir}"
fi
