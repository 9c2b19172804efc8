# Ends the servers and removes the directories of a firstcome process that has ended, however it
# ended. Standard input is a pipe whose only writing end that process holds, so that its end of file
# is the process's end. A line `+ENTRY` adds an entry to the list, `-ENTRY` takes it off again:
#
#   server SIGNAL DIR   end the server that works in DIR: SIGNAL asks it to
#   remove PATH         then remove PATH
#
# Needs Linux's /proc, and of test(1) the `-ef` that every Debian shell has.

# Our own group is not the terminal's; this is for those who signal everything.
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

# Whether process $1 works in $dir, which may have been removed under it.
in_dir() {
    if [ -d "$dir" ]; then
        [ "/proc/$1/cwd" -ef "$dir" ]
    else
        [ "$(readlink "/proc/$1/cwd")" = "$dir (deleted)" ]
    fi
}

# Those of $pids that are still alive. A zombie has no working directory, so it is not.
alive() {
    for pid in $pids; do
        if in_dir "$pid"; then echo "$pid"; fi
    done
}

# Only processes seen now are waited for and killed: a next `firstcome dev` may start its own servers
# in the same directory as soon as these are gone.
end_server() {
    signal=$1 dir=$2 pids=
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        in_dir "$pid" || continue
        # Not a person's shell, or their psql, that happens to stand in DIR.
        read -r name <"$process/comm" || continue
        case $name in
        *redis-server* | *valkey-server* | *postgres* | initdb) pids="$pids $pid" ;;
        esac
    done
    [ -n "$pids" ] || return 0

    # PostgreSQL's children have other uses for these signals: only its first process gets it.
    leader=
    [ ! -e "$dir/postmaster.pid" ] || read -r leader <"$dir/postmaster.pid"
    case " $pids " in
    *" ${leader:-none} "*) kill -s "$signal" "$leader" ;;
    *) kill -s "$signal" $pids ;;
    esac
    # A test may have paused it; a stopped process handles no signal.
    kill -s CONT $pids

    tries=0
    while [ -n "$(alive)" ]; do
        tries=$((tries + 1))
        # A minute: a busy server flushes before it ends.
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
        # Once more if something that we were busy with still wrote there.
        rm -rf -- "${entry#remove }" || { sleep 1 && rm -rf -- "${entry#remove }"; }
        ;;
    esac
done
