#!/bin/bash
# An array of parts: each task does every N-th subject. Submit it from where its logs may go:
#   sbatch --array=0-7 slurm.sh IN OUT REPORT [options of synthesize]
# IN, OUT and REPORT lie on a file system that all nodes mount. When all is done: tetrad merge-records REPORT
#
# TETRAD_SIF=tetrad.sif   an Apptainer image; without it TETRAD, a command, is run
# TETRAD=.venv/bin/tetrad default: tetrad
# TETRAD_PARTS=8          how many parts, to repeat some of them: TETRAD_PARTS=8 sbatch --array=3,7 slurm.sh ...
#
# With GPUs: sbatch --gpus-per-task=1 --cpus-per-task=8 ...
#SBATCH --job-name=tetrad
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=08:00:00
#SBATCH --output=tetrad-%A_%a.log
# Who is pre-empted, or loses its node, waits again and keeps what is done.
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the time is over: what was begun is written, and the task queues itself again.
#SBATCH --signal=B:TERM@120
set -u

input=$1 output=$2 report=$3
shift 3
mkdir -p "$output" "$report"
arguments=(synthesize --input "$input" --output "$output" --report-dir "$report" "$@")
[ -z "${TETRAD_PARTS-}" ] || arguments+=(--part-id "$SLURM_ARRAY_TASK_ID" --num-parts "$TETRAD_PARTS")
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

if [ -n "${TETRAD_SIF-}" ]; then
    gpu=()
    [ -z "${SLURM_JOB_GPUS-}${SLURM_STEP_GPUS-}" ] || gpu=(--nv)
    command=(apptainer run --containall --no-home "${gpu[@]}" -B "$input:$input:ro" -B "$output" -B "$report"
        --env "$(env | grep '^SLURM_ARRAY_TASK_' | paste -sd,)" "$TETRAD_SIF")
else
    command=("${TETRAD:-tetrad}")
fi

# The shell gets the signal; the program must have it.
"${command[@]}" "${arguments[@]}" &
child=$! ended=
trap 'ended=yes; kill -TERM "$child"' TERM
wait "$child"
code=$?
if [ -n "$ended" ]; then
    # The signal ended the wait, not the program.
    wait "$child"
    code=$?
fi
if [ "$code" -eq 143 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
fi
exit "$code"
