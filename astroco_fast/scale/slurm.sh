#!/bin/bash
# Pretraining on several machines under Slurm. The arguments are those of `astroco pretrain`:
#
#     sbatch --nodes 4 slurm.sh --preset S --data /shared/survey.store --out /shared/runs/S-survey
#
# Ahead of its time limit the run saves its state and queues again; started again, it goes on. The same command also
# goes on with a run after a failure. Change the lines below to what your cluster calls for.
#SBATCH --job-name=astroco
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

# source /shared/venv/bin/activate

ranks=${SLURM_GPUS_ON_NODE:-1} # processes on each machine
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((20000 + SLURM_JOB_ID % 10000))
export OMP_NUM_THREADS=$(((${SLURM_CPUS_PER_TASK:-1} + ranks - 1) / ranks))
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # without it, torchrun cannot take a lost machine back
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1

# srun passes SIGUSR1 on to each torchrun. SIGTERM would make it kill them: Slurm sends them that itself.
trap 'again=yes; kill -USR1 "$step"' USR1
trap : TERM

srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "$ranks" --max_restarts 3 \
    --rdzv_backend c10d --rdzv_endpoint "$head:$port" --rdzv_id "$SLURM_JOB_ID" -m astroco_fast.pretrain "$@" &
step=$!
wait "$step"
status=$?
while kill -0 "$step" 2>/dev/null; do # a signal ended the wait, not the step
    wait "$step"
    status=$?
done

if [ "${again:-}" ] && [ "$status" -ne 0 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
