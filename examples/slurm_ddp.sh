#!/usr/bin/env bash
# One model on several machines with several GPUs each: sbatch examples/slurm_ddp.sh transformer-base --epochs 5
# Submit it in the project's folder, which all machines must share. The same job, submitted again after its time limit,
# goes on from the last checkpoint, with as many machines as it then has.
#SBATCH --job-name=picollm-ddp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
set -euo pipefail

# One torchrun a machine starts one process a GPU; all of them meet at the first machine.
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
processes=${SLURM_GPUS_ON_NODE:-4}

# A GPU's process needs a core or two, for its rows. On machines without GPUs: one process a machine or a socket, this
# many threads in each, --nproc_per_node to match, and --device cpu.
export OMP_NUM_THREADS=2

srun --kill-on-bad-exit=1 .venv/bin/torchrun \
    --nnodes="$SLURM_NNODES" \
    --nproc_per_node="$processes" \
    --rdzv_id="$SLURM_JOB_ID" \
    --rdzv_backend=c10d \
    --rdzv_endpoint="$first:29500" \
    -m picollm_core.train "${@:-transformer-small}"
