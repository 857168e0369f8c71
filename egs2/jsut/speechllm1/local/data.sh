#!/usr/bin/env bash
# data/jsut_<part> of JSUT.
set -euo pipefail

jsut_dir=
datadir=data
parts=basic5000
help_message="Usage: local/data.sh [--jsut_dir DIR] [--datadir ${datadir}] [--parts \"NAME …\"]
  --jsut_dir DIR       folder jsut_ver1.1 [JSUT in db.sh]
  --datadir DIR        where the sets are made [${datadir}]
  --parts \"NAME …\"     parts of the corpus [${parts}]"
. utils/parse_options.sh
. ./db.sh

source_dir=${jsut_dir:-${JSUT:-}}
if [ -z "${source_dir}" ]; then
    echo "local/data.sh: error: db.sh has no line JSUT=…; write the folder jsut_ver1.1 there" >&2
    exit 1
fi
. ./path.sh
# shellcheck disable=SC2086 # parts are words
python3 -m speechllm.bin.prepare_data jsut --jsut_dir "${source_dir}" \
    --output "${datadir}" --parts ${parts}
