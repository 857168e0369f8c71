#!/usr/bin/env bash
# After ./run.sh: short trainings of stages 8 and 9 with several learning rates. Writes their
# table and curves, exp/LEARNING_RATES.md and .png. A re-run resumes and skips what is
# finished.
set -euo pipefail
cd "$(dirname "$0")/.."

warmup_rates="8e-4 2.4e-3 7.2e-3"
train_rates="2e-4 6e-4 1.8e-3"
train_steps=240
help_message="Usage: local/learning_rates.sh [options] [options of run.sh, such as --ngpu 1]
Trains CTC for 3 epochs (423 steps) and the LLM for some steps with each learning rate, and
compares them on dev.
Options [default]:
  --warmup_rates \"LR …\"   of stage 8 [${warmup_rates}]
  --train_rates \"LR …\"    of stage 9, after the CTC of run.sh's stage 8 [${train_rates}]
  --train_steps N         of stage 9, at least 8 [${train_steps}]"
pass_to=./run.sh
. utils/parse_options.sh
whole train_steps 8 99999

exp=exp/learning_rates
run() { # <name> <learning rate> <steps of the schedule> <more arguments> <options of run.sh …>
    local name=$1 words="--optim_conf lr=$2 --scheduler_conf max_steps=$3 $4"
    shift 4
    [ ! -f "${exp}/${name}/finished" ] || return 0
    ./run.sh --expdir "${exp}/${name}" --first_pass_config '' \
        --train_args "${words}" "${other_options[@]}" "$@"
    touch "${exp}/${name}/finished"
}
for rate in ${warmup_rates}; do
    run "warmup_${rate}" "${rate}" 423 "--max_epoch 3" --stage 7 --stop_stage 8
done
# With 240 steps the rate rises for 120 steps, as in run.sh. A shorter rise would rank the
# rates by it: the gradients are largest in the first 60 steps.
schedule="--scheduler_conf warmup_ratio=0.5 --scheduler_conf hold_ratio=0.1 --scheduler_conf decay_ratio=0.4"
for rate in ${train_rates}; do
    run "train_${rate}_${train_steps}" "${rate}" "${train_steps}" \
        "${schedule} --max_epoch 4 --num_iters_per_epoch $((train_steps / 4))" \
        --stage 9 --stop_stage 9 --speechllm_stats_dir exp/speechllm_stats_train \
        --init_param exp/speechllm_warmup/valid.cer_ctc.ave.pth
done

. ./path.sh
folders=()
for rate in ${warmup_rates}; do folders+=("${exp}/warmup_${rate}/speechllm_warmup"); done
for rate in ${train_rates}; do
    folders+=("${exp}/train_${rate}_${train_steps}/speechllm_train")
done
python3 -m speechllm.bin.compare_trainings --exp_dirs "${folders[@]}" --output exp/LEARNING_RATES
