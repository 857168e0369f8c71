# shellcheck shell=bash
# Locks of output folders: two runs never write into a folder at the same time. Source it
# after utils/parse_options.sh.
#
# The lock is flock's on <folder>/.lock, which states the run that holds it. It ends with
# the run and its jobs, also when they are killed.

locks=()  # file descriptors

# A run is the process of its run.sh, or of this script. The job runners end their jobs
# when it ends.
[ "${SPEECHLLM_PID:-}" = "$(hostname):${PPID}" ] || SPEECHLLM_PID=$(hostname):$$
export SPEECHLLM_PID

log() { echo "$(date '+%Y-%m-%dT%H:%M:%S') (${0##*/}) $*"; }

_lock_message() { log "${current:+Stage ${current}: }$*"; }

# Wait for the runs that write into these folders, then keep others out until unlock.
lock() { # <folder …>
    local folder descriptor code
    for folder in "$@"; do
        _write_lock_file "${folder}"
        exec {descriptor}>> "${folder}/.lock"
        locks+=("${descriptor}")
        code=0
        flock -w 0.5 -E 75 "${descriptor}" 2> /dev/null || code=$?
        if [ "${code}" -eq 75 ]; then
            _wait_for_lock "${folder}" "${descriptor}"
        elif [ "${code}" -ne 0 ]; then
            _lock_message "${folder} cannot be locked (the file system has no locks, or flock is not installed); do not start a second run in it"
        fi
        _write_lock_file "${folder}" \
            "run ${SPEECHLLM_PID##*:} on ${SPEECHLLM_PID%:*}, since $(date '+%Y-%m-%d %H:%M:%S')"
    done
}

_wait_for_lock() { # <folder> <file descriptor>
    local tries=0 code
    _lock_message "$1 is locked by $(_lock_holder "$1"); waiting for its end (lock: $1/.lock)"
    # Short waits: flock must not outlive a killed script for long.
    until code=0; flock -w 5 -E 75 "$2" || code=$?; [ "${code}" -ne 75 ]; do
        tries=$((tries + 1))
        if [ $((tries % 12)) -eq 0 ]; then
            _lock_message "$1: waiting for $(_lock_holder "$1"), $((tries / 12)) min"
        fi
    done
    _lock_message "$1 is not locked any more; continuing"
}

_lock_holder() { # <folder>
    local holder
    holder=$(head -n 1 "$1/.lock" | tr -cd '[:print:]')
    echo "${holder:-another run}"
}

# Write the lock file; end with an error if that is not possible.
_write_lock_file() { # <folder> [<line for its lock file>]
    if ! {
        mkdir -p "$1" &&
            if [ $# -gt 1 ]; then echo "$2" > "$1/.lock"; else : >> "$1/.lock"; fi
    } 2> /dev/null; then
        fail "${current:+stage ${current} }cannot write into $1: it is read-only, its disk is full, or it is not a folder"
    fi
}

unlock() {
    local descriptor
    for descriptor in "${locks[@]}"; do
        exec {descriptor}>&-
    done
    locks=()
}
