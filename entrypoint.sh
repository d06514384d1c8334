#!/bin/sh
# Without arguments: complete the exams of /input into /output. With: any command of `python -m app`.

# A container's first process gets only the signals that it asks for: this shell does at once, and hands them on.
# Ctrl-C is handed on as SIGTERM, since a shell lets what it runs in the background ignore the former.
child='' ended='' again=''
end() {
    woken=yes
    [ -n "$child" ] || return
    kill -s TERM "$child" 2>/dev/null
    if [ -z "$again" ]; then
        # Once more: a copy of this shell that has not become Python yet swallows the first. Python does the second.
        again=yes
        { sleep 1 && kill -s USR1 $$; } </dev/null >/dev/null 2>&1 &
    fi
}
trap 'ended=143; end' TERM
trap 'ended=130; end' INT
trap end USR1

# The working directory may be anybody's data. No search path may lead there, so relative parts and empty ones go.
set -f
absolute() {
    IFS=: kept=''
    for part in $1; do
        case $part in /*) kept=$kept${kept:+:}$part ;; esac
    done
    unset IFS
}
absolute "$PATH"
PATH=${kept:-/usr/local/bin:/usr/bin:/bin}
if [ -n "$LD_LIBRARY_PATH" ]; then
    absolute "$LD_LIBRARY_PATH"
    LD_LIBRARY_PATH=$kept
fi
# By these, libraries would load code that somebody names.
unset ITK_AUTOLOAD_PATH

case $0 in
    */*) place=$(CDPATH='' cd -- "${0%/*}" && pwd -P) ;;
    *) place=$(pwd -P) ;;
esac
# Isolated (-I): neither the working directory, nor the environment, nor the home leads Python to code.
python -I -B -u "$place/app/__main__.py" "$@" &
child=$!
[ -z "$ended" ] || end
# A signal ends the wait, not the child. One that has been waited for gives 127.
code=127 woken=yes
while [ -n "$woken" ]; do
    woken=''
    wait "$child"
    now=$?
    [ "$now" -eq 127 ] || code=$now
done
[ "$code" -ne 143 ] || code=${ended:-143}
case $code in 134 | 137 | 139)
    echo "ERROR: Tetrad was killed (code $code), most often for want of memory; give it more (--memory, ulimit -v)." >&2 ;;
esac
exit "$code"
