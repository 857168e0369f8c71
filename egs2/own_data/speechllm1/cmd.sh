# shellcheck shell=bash
# shellcheck disable=SC2034  # speechllm.sh reads these
# Job runners: "local" runs jobs on this machine, "slurm" on a cluster.
#
# A runner is called as `<cmd> [--gpu N] [--mem 8G] [--num_threads N] [--max_jobs_run N]
# [JOB=1:N] <log> <command …>`; Kaldi's run.pl, slurm.pl and queue.pl can be used, too.
# Set further cluster options here (`slurm.pl --partition gpu`) or in sbatch's
# environment variables (SBATCH_ACCOUNT, …).
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
