# shellcheck shell=bash
# shellcheck disable=SC2034  # speechllm.sh reads these
# Job runners: "local" runs jobs on this machine, "slurm" on a cluster.
#
# A runner is called as `<cmd> [--gpu N] [--mem 8G] [--num_threads N] [--max_jobs_run N]
# [JOB=1:N] <log> <command …>`; Kaldi's run.pl, slurm.pl and queue.pl can be used, too.
# A job on Slurm has as many threads as CPUs (--num_threads). Options of the cluster
# (partition, account, …) belong into conf/slurm.conf: egs2/TEMPLATE/README.md, Slurm.
cmd_backend=${cmd_backend:-local}

case ${cmd_backend} in
    local)
        train_cmd=run.pl   # data preparation
        cuda_cmd=run.pl    # training
        decode_cmd=run.pl  # decoding
        ;;
    slurm)
        train_cmd="slurm.pl --mem 8G"
        cuda_cmd="slurm.pl --mem 32G --num_threads 4"
        decode_cmd="slurm.pl --mem 16G --num_threads 4"
        ;;
    *)
        echo "cmd.sh: error: unknown cmd_backend '${cmd_backend}'; there are: local slurm" >&2
        exit 1
        ;;
esac
