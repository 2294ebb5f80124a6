#!/usr/bin/env bash
# Many runs on several machines: sbatch examples/slurm_sweep.sh widths.py
# The file defines the list `configs`. Submit it in the project's folder, which all machines must share. Finished runs
# are kept, so the same job, submitted again, trains what is missing.
#SBATCH --job-name=picollm-sweep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --time=08:00:00
set -euo pipefail
sweep=${1:?usage: sbatch examples/slurm_sweep.sh FILE.py}

# Dask's scheduler runs on the first machine, and one worker process a core on every machine.
export OMP_NUM_THREADS=1
address="tcp://$(hostname):8786"
.venv/bin/dask scheduler --port 8786 --no-dashboard &
scheduler=$!
trap 'kill "$scheduler"' EXIT
srun .venv/bin/dask worker "$address" --nworkers "$SLURM_CPUS_PER_TASK" --nthreads 1 --no-dashboard &

# The sweep counts the workers when it begins, so all of them must be there.
workers=$((SLURM_NNODES * SLURM_CPUS_PER_TASK))
.venv/bin/python -c "from distributed import Client; Client('$address', timeout=600).wait_for_workers($workers, 600)"
.venv/bin/picollm sweep "$sweep" --cluster "$address" --out "${sweep%.py}.csv"
