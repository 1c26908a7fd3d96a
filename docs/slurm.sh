#!/bin/bash
# One run per task of a Slurm array: sbatch slurm.sh [CONFIG [KEY=VALUE …]]
# A task that comes near its time limit, or is preempted, saves its run and is queued again.

#SBATCH --job-name=pgcli
#SBATCH --array=0-9
#SBATCH --cpus-per-task=1
#SBATCH --mem=2G
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%A_%a.log

config=${1:-cartpole/ppo}
name=${config%.yaml}
run_dir=${RUNS:-runs}/${name//\//-}/seed-$SLURM_ARRAY_TASK_ID

stopped=no
stop() { # once: a second signal would end pgcli before it has saved
    trap '' USR1 TERM
    stopped=yes
    kill -TERM "$pid"
}

pgcli train "$config" "${@:2}" seed="$SLURM_ARRAY_TASK_ID" --run-dir "$run_dir" --resume --quiet &
pid=$!
trap stop USR1 TERM
wait "$pid"
code=$?
if [ "$stopped" = yes ]; then # the signal ended `wait`: wait for pgcli itself
    wait "$pid"
    code=$?
    if [ "$code" -eq 143 ] && ! scontrol show job "$SLURM_JOB_ID" | grep -q JobState=CANCELLED; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
fi
exit "$code"
