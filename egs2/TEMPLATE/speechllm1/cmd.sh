# shellcheck shell=bash
# shellcheck disable=SC2034  # speechllm.sh reads these
# How jobs are run: "local" on this machine, "slurm" on a cluster.
#
# Each command is called as `<cmd> [--gpu N] [--mem 8G] [--num_threads N]
# [--max_jobs_run N] [JOB=1:N] <log> <command …>`, so Kaldi's own run.pl, slurm.pl
# or queue.pl can take their place. What a cluster wants beyond that goes here
# (`slurm.pl --partition gpu`) or into sbatch's variables (SBATCH_ACCOUNT, …).
cmd_backend=${cmd_backend:-local}

case ${cmd_backend} in
    local)
        train_cmd=run.pl   # data preparation
        cuda_cmd=run.pl    # training
        decode_cmd=run.pl  # decoding
        ;;
    slurm)
        train_cmd="slurm.pl --mem 8G"
        cuda_cmd="slurm.pl --mem 32G"
        decode_cmd="slurm.pl --mem 16G"
        ;;
    *)
        echo "cmd.sh: error: unknown cmd_backend '${cmd_backend}'; there are: local slurm" >&2
        exit 1
        ;;
esac
