# Ends the servers and removes the directories of a firstcome process after its end. Standard input is
# a pipe whose only writing end that process holds: its end of file is the end of the process. A line
# `+ENTRY` adds an entry to the list, `-ENTRY` removes it:
#
#   server SIGNAL DIR   end the server that works in DIR, with SIGNAL
#   remove PATH         then remove PATH
#
# Needs Linux's /proc, and `-ef` of test(1), which every Debian shell has.

# The process group already excludes the terminal's signals; this covers signals to every process.
trap '' HUP INT TERM

set --
while IFS= read -r line; do
    case $line in
    +*) set -- "$@" "${line#+}" ;;
    -*)
        for entry do
            shift
            [ "$entry" = "${line#-}" ] || set -- "$@" "$entry"
        done
        ;;
    esac
done

# Whether process $1 works in $dir, also if $dir has been removed meanwhile.
in_dir() {
    if [ -d "$dir" ]; then
        [ "/proc/$1/cwd" -ef "$dir" ]
    else
        [ "$(readlink "/proc/$1/cwd")" = "$dir (deleted)" ]
    fi
}

# Prints those of $pids that are alive. A zombie has no working directory and is not printed.
alive() {
    for pid in $pids; do
        if in_dir "$pid"; then echo "$pid"; fi
    done
}

# Waits for and kills only the processes found at first: the next `firstcome dev` may start its own
# servers in the same directory meanwhile.
end_server() {
    signal=$1 dir=$2 pids=
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        in_dir "$pid" || continue
        # Skips a shell or a psql that works in DIR.
        read -r name <"$process/comm" || continue
        case $name in
        *redis-server* | *valkey-server* | *postgres* | initdb) pids="$pids $pid" ;;
        esac
    done
    [ -n "$pids" ] || return 0

    # Only to the first process: to PostgreSQL's children these signals mean something else.
    leader=
    [ ! -e "$dir/postmaster.pid" ] || read -r leader <"$dir/postmaster.pid"
    case " $pids " in
    *" ${leader:-none} "*) kill -s "$signal" "$leader" ;;
    *) kill -s "$signal" $pids ;;
    esac
    # A test may have paused the server; a stopped process handles no signal.
    kill -s CONT $pids

    tries=0
    while [ -n "$(alive)" ]; do
        tries=$((tries + 1))
        # SIGKILL after a minute: a busy server flushes before it ends.
        [ "$tries" -ne 600 ] || kill -s KILL $(alive)
        [ "$tries" -lt 700 ] || return 1
        sleep 0.1
    done
}

for entry do
    case $entry in
    server\ *)
        entry=${entry#server }
        end_server "${entry%% *}" "${entry#* }" &
        ;;
    esac
done
wait
for entry do
    case $entry in
    remove\ *)
        # Again after a second if a process still wrote there.
        rm -rf -- "${entry#remove }" || { sleep 1 && rm -rf -- "${entry#remove }"; }
        ;;
    esac
done
