#!/usr/bin/env bash
# Prepare ${datadir}/jsut_<part> of JSUT.
set -euo pipefail

jsut_dir=
datadir=data
parts=basic5000
help_message="Usage: local/data.sh [options]
  --jsut_dir DIR     folder jsut_ver1.1 [JSUT in db.sh]
  --datadir DIR      output folder of the sets [${datadir}]
  --parts \"NAME …\"   parts of the corpus [${parts}]"
. utils/parse_options.sh
find_corpus --jsut_dir "${jsut_dir}" JSUT "jsut_ver1.1"

# shellcheck disable=SC2086 # one word per part
python3 -m speechllm.bin.prepare_data jsut --jsut_dir "${corpus_dir}" \
    --output "${datadir}" --parts ${parts}
