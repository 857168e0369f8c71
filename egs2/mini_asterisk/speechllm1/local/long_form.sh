#!/usr/bin/env bash
# After ./run.sh: join the test prompts to long recordings, with pauses, with hold music
# between them, and without pauses; write WER and word times to exp/LONG_FORM.md.
# Takes the options of speechllm.bin.benchmark_long_form (--minutes 60 --joins none).
set -euo pipefail
cd "$(dirname "$0")/.."
options=("$@")
set --
. utils/parse_options.sh
. utils/locks.sh
. ./path.sh
lock exp/log

python3 -m speechllm.bin.benchmark_long_form --model exp/speechllm_train/model \
    --examples dump/examples/test --music "$(local/hold_music.sh)" \
    --output_dir exp/long_form --config conf/decode.yaml "${options[@]}" | tee exp/LONG_FORM.md
