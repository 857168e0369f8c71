#!/usr/bin/env bash
# data/{train,dev,test} of Asterisk's voice prompts, fetched when they are not here.
set -euo pipefail

datadir=data
asterisk_dir=
max_prompts=
help_message="Usage: local/data.sh [--asterisk_dir DIR] [--datadir ${datadir}] [--max_prompts N]
  --asterisk_dir DIR  unpacked sound and text packages [ASTERISK in db.sh]
  --datadir DIR       where train, dev and test are made [${datadir}]
  --max_prompts N     take N prompts only [all]"
. utils/parse_options.sh
. ./path.sh
. ./db.sh

source_dir=${asterisk_dir:-${ASTERISK:-}}
if [ -z "${source_dir}" ]; then
    echo "local/data.sh: error: db.sh has no line ASTERISK=…; write the folder of the unpacked packages there, or 'downloads' to fetch them" >&2
    exit 1
fi
options=()
if [ "${source_dir}" != downloads ]; then
    options+=(--asterisk_dir "${source_dir}")
fi
[ -z "${max_prompts}" ] || options+=(--max_prompts "${max_prompts}")
python3 -m speechllm.bin.prepare_data asterisk --output_dir "${datadir}" "${options[@]}"
