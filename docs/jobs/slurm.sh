#!/bin/bash
# Train on shards with two nodes of four GPUs: sbatch docs/jobs/slurm.sh cfg.yaml. Submit it again to go on.
#SBATCH --job-name=seghiero
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180

set -euo pipefail
config=${1:?usage: sbatch slurm.sh CFG}
cache=${TMPDIR:-/tmp}/seghiero-shards # on a disk of the node, for the shards that are in use

export OMP_NUM_THREADS=4
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120 # seconds for the last step and its checkpoint
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun \
  --nnodes "$SLURM_NNODES" --nproc-per-node 4 \
  --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
  -m seghiero_cli train "$config" --resume --set dataset.cache_dir="$cache"
