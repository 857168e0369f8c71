#!/usr/bin/env bash
# Evaluate guard and confidence; see the usage below.
set -euo pipefail
cd "$(dirname "$0")/.."
help_message="Usage: local/guard.sh [options of python -m speechllm.bin.guard_table, such as --limit 60]
After ./run.sh: evaluates the guard and the confidence of words, which stage 11 derives
from dev, on silence, noise, hold music, the three untrained languages, short clips,
clipped audio, one word repeated thirty times, and the clean test set. Writes exp/GUARD.md
and exp/reliability.png."
options=("$@")
case " $* " in *" --help "* | *" -h "*) set -- --help ;; *) set -- ;; esac
. utils/parse_options.sh
. utils/locks.sh
. ./path.sh

model=exp/speechllm_train/model
lock exp/speechllm_train exp/log
music=$(local/hold_music.sh)

python3 -m speechllm.bin.calibrate --model "${model}" --examples dump/examples/dev \
    --test_examples dump/examples/test --picture exp/reliability.png

# Eight test prompts of each untrained language.
foreign=()
for language in es it ru; do
    while read -r path; do
        foreign+=("${language}=${path}")
    done < <(awk -v id="^${language}-" '$1 ~ id && ++n % 6 == 1 { sub(/^[^ ]* /, ""); print }' data/test/wav.scp | head -n 8)
done

# Single words of the English voice, in the folder of the prompts.
words=()
prompts=$(dirname "$(sed -n 's/^en-agent-user //p' data/test/wav.scp)")
for pair in five=digits/5 nine=digits/9 extension=extension goodbye=vm-goodbye hours=hours; do
    if [ -f "${prompts}/${pair#*=}.g722" ]; then
        words+=("${pair%%=*}=${prompts}/${pair#*=}.g722")
    fi
done

python3 -m speechllm.bin.guard_table --model "${model}" --examples dump/examples/test \
    --music "${music}"/*.g722 --foreign "${foreign[@]}" --words "${words[@]}" \
    --output exp/GUARD.md "${options[@]}"
