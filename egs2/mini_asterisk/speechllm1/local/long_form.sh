#!/usr/bin/env bash
# Evaluate long recordings; see the usage below.
set -euo pipefail
cd "$(dirname "$0")/.."
help_message="Usage: local/long_form.sh [options of python -m speechllm.bin.benchmark_long_form, such as --minutes 60]
After ./run.sh: joins the test prompts to long recordings, with pauses, with hold music
between them, and without pauses. Writes WER and word times to exp/LONG_FORM.md."
options=("$@")
case " $* " in *" --help "* | *" -h "*) set -- --help ;; *) set -- ;; esac
. utils/parse_options.sh
. utils/locks.sh
. ./path.sh
lock exp/log

python3 -m speechllm.bin.benchmark_long_form --model exp/speechllm_train/model \
    --examples dump/examples/test --music "$(local/hold_music.sh)" \
    --output_dir exp/long_form --config conf/decode.yaml "${options[@]}" | tee exp/LONG_FORM.md
