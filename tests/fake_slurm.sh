#!/usr/bin/env bash
# Stands in for SLURM: sbatch, srun, scontrol and sacct in one file, told apart by the name that it
# is called by. Jobs are processes of this machine; what is known of them lies in $FAKE_SLURM:
# <job>.state, <job>.requeue where it shall start again, <job>.pids of its tasks.
set -eu
cd "$FAKE_SLURM"
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}

run_job() { # the script of one job, again and again as long as it is requeued
    while :; do
        rm -f "$job.requeue"
        echo RUNNING > "$job.state"
        end=COMPLETED
        (cd "$OLDPWD" && exec bash "$script") || end=FAILED
        [ -e "$job.requeue" ] || break
    done
    echo $end > "$job.state"
}

case $(basename "$0") in
sbatch)
    script=$FAKE_SLURM/submitted-$$.sh
    cp "$1" "$script"
    last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\)%.*/\1/p' "$script")
    export SLURM_JOB_NUM_NODES=1 SLURM_NNODES=1 SLURM_NTASKS=1 SLURM_NTASKS_PER_NODE=1
    export SLURM_JOB_NODELIST=127.0.0.1 SLURM_NODELIST=127.0.0.1 SLURM_JOB_NAME=fake
    for task in $(seq 0 "$last"); do
        export SLURM_ARRAY_JOB_ID=$$ SLURM_ARRAY_TASK_ID=$task SLURM_JOB_ID=$(($$ + task + 1))
        job=$$_$task
        echo PENDING > "$job.state"
        run_job > "$job.log" 2>&1 < /dev/null &
    done
    echo "Submitted batch job $$"
    ;;
srun)
    output= error=
    while [[ $1 == --* ]]; do
        case $1 in
        --output) output=$2 && shift 2 ;;
        --error) error=$2 && shift 2 ;;
        *) shift ;;
        esac
    done
    pids=()
    for rank in $(seq 0 $((SLURM_NTASKS - 1))); do
        export SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NODEID=0
        named() { sed "s/%A_%a/$job/; s/%t/$rank/" <<< "$1"; }
        if [ -n "$output" ]; then
            (cd "$OLDPWD" && exec "$@" >> "$(named "$output")" 2>> "$(named "$error")") &
        else
            (cd "$OLDPWD" && exec "$@") &
        fi
        pids+=($!)
    done
    echo "${pids[@]}" > "${job:-$SLURM_JOB_ID}.pids"
    code=0
    for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
    exit $code
    ;;
scontrol)
    [ "$1" = requeue ] && touch "$2.requeue"
    ;;
sacct)
    echo "JobID|State|NodeList"
    for state in *.state; do echo "${state%.state}|$(cat "$state")|here"; done
    ;;
esac
