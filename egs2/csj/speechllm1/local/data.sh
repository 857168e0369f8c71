#!/usr/bin/env bash
# data/{train,dev,eval1,eval2,eval3} of CSJ.
set -euo pipefail

csj_dir=
datadir=data
style=disfluent
edition=
kinds=ASMRD
gap=0.5
max_seconds=10
max_same_text=300
help_message="Usage: local/data.sh [options]
  --csj_dir DIR        the corpus [CSJ in db.sh]
  --datadir DIR        where the sets are made [${datadir}]
  --style STYLE        disfluent (what was said) or fluent (what was meant) [${style}]
  --edition EDITION    sdb or xml [sdb where there is one]
  --kinds LETTERS      talks to train on: A academic, S simulated, M other, R read, D dialogue [${kinds}]
  --gap S              longest pause inside an utterance, seconds [${gap}]
  --max_seconds S      an utterance that is longer takes no further segment [${max_seconds}]
  --max_same_text N    how often a text may come in training [${max_same_text}]"
. utils/parse_options.sh
. ./db.sh

source_dir=${csj_dir:-${CSJ:-}}
if [ -z "${source_dir}" ]; then
    echo "local/data.sh: error: db.sh has no line CSJ=…; write the folder that holds WAV and MORPH (or XML) there" >&2
    exit 1
fi
. ./path.sh
python3 -m speechllm.bin.prepare_data csj --csj_dir "${source_dir}" \
    --output "${datadir}" --style "${style}" ${edition:+--edition "${edition}"} \
    --kinds "${kinds}" --gap "${gap}" --max_seconds "${max_seconds}" \
    --max_same_text "${max_same_text}"
