# shellcheck shell=bash
# Source it to end all processes that a script started when the script ends, also when it
# is killed (SIGTERM, SIGHUP). A killed shell leaves the command that it waits for running.

_descendants() { # print the processes that this script started, their children, …
    local own=${BASHPID}  # the subshell that lists them
    grep -s '^PPid:' /proc/[0-9]*/status | awk -F '[/:\t]+' -v shell=$$ -v own="${own}" '
        $3 != own { children[$6] = children[$6] " " $3 }
        END {
            found = shell
            while (found != "") {
                number = split(found, parents, " ")
                found = ""
                for (i = 1; i <= number; i++) found = found children[parents[i]]
                if (found != "") print found
            }
        }' || true
}

_end_children() {
    local found before='' all=''
    trap '' TERM HUP INT
    # A stopped process starts no others; one that began after a list would be missed. One
    # whose parent has ended is in no later list, but must not stay stopped.
    found=$(_descendants)
    while [ "${found}" != "${before}" ]; do
        # shellcheck disable=SC2086 # one word per process
        kill -STOP ${found} 2> /dev/null || true
        all+=" ${found}"
        before=${found}
        found=$(_descendants)
    done
    if [ -n "${all}" ]; then
        # shellcheck disable=SC2086
        { kill ${all}; kill -CONT ${all}; } 2> /dev/null || true
    fi
}
trap _end_children EXIT
