# shellcheck shell=bash
# Source it to end all processes that a script started when the script ends, also when it
# is killed (SIGTERM, SIGHUP). A killed shell leaves the command that it waits for running.

_end_children() {
    # One list of all processes, since those that make the list come and go, too.
    # shellcheck disable=SC2046 # one word per process
    kill $(grep -s '^PPid:' /proc/[0-9]*/status | awk -F '[/:\t]+' -v shell=$$ '
        { children[$6] = children[$6] " " $3 }
        END {
            found = shell
            while (found != "") {
                number = split(found, parents, " ")
                found = ""
                for (i = 1; i <= number; i++) found = found children[parents[i]]
                print found
            }
        }') 2> /dev/null || true
}
trap _end_children EXIT
