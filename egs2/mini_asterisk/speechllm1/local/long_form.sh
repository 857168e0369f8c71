#!/usr/bin/env bash
# After ./run.sh: the test prompts joined to long recordings, with pauses, with hold
# music between, and without any pause; WER and word times, in exp/LONG_FORM.md.
# Options of speechllm.bin.benchmark_long_form may follow (--minutes 60 --joins none).
set -euo pipefail
cd "$(dirname "$0")/.."
. ./path.sh

python3 -m speechllm.bin.benchmark_long_form --model exp/speechllm_train/model \
    --examples dump/examples/test --music "$(local/hold_music.sh)" \
    --output_dir exp/long_form --config conf/decode.yaml "$@" | tee exp/LONG_FORM.md
