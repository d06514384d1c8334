#!/bin/sh
# run_image.sh TAG INPUT OUTPUT [arguments]: docker with the challenge's flags, hardened.
tag=$1 input=$2 output=$3
shift 3
mkdir -p "$output" && chmod 777 "$output"
exec docker run --rm --network none --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
    --memory 16g --shm-size 4g --user 10002:10002 \
    -v "$(realpath "$input"):/input:ro" -v "$(realpath "$output"):/output" "$tag" "$@"
