#!/bin/sh
# Without arguments: complete the exams of /input into /output. With: any command of `python -m app`.
PYTHONPATH=$(dirname "$0")
export PYTHONPATH
exec python -m app "$@"
