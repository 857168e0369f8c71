#!/usr/bin/env bash
# Prepare ${datadir}/{train,dev,test} of Fish Fillets, which is downloaded if missing.
set -euo pipefail

datadir=data
fillets_dir=
max_utterances=
help_message="Usage: local/data.sh [options]
  --fillets_dir DIR   unpacked packages, or /usr/share/games/fillets-ng with the packages
                      installed [FILLETS in db.sh]
  --datadir DIR       output folder of the sets [${datadir}]
  --max_utterances N  use N utterances per language for training, N/4 each for dev and test [all]"
. utils/parse_options.sh
find_corpus --fillets_dir "${fillets_dir}" FILLETS \
    "of the unpacked packages, or 'downloads' to fetch them,"

options=(--download_dir downloads)
if [ "${corpus_dir}" != downloads ]; then
    options=(--fillets_dir "${corpus_dir}")
fi
python3 -m speechllm.bin.prepare_data fillets --output "${datadir}" "${options[@]}" \
    ${max_utterances:+--max_utterances "${max_utterances}"}
