#!/bin/sh
# Without arguments: complete the exams of /input into /output. With: any command of `python -m app`.

# A container's first process gets only the signals that it asks for: this shell does at once, and hands them on.
child='' signal=''
trap 'signal=TERM; [ -z "$child" ] || kill -s TERM "$child"' TERM
trap 'signal=INT; [ -z "$child" ] || kill -s INT "$child"' INT

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
[ -z "$signal" ] || kill -s "$signal" "$child"
# A signal ends the wait, not the child; waited for twice, one that has ended gives 127.
wait "$child"
code=$?
while [ -n "$signal" ]; do
    signal=''
    wait "$child"
    again=$?
    [ "$again" -eq 127 ] || code=$again
done
exit "$code"
