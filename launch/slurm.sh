#!/usr/bin/env bash
# Trains on several nodes of a SLURM cluster, one process a node with all its GPUs:
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --config=configs/luvit.py:size=full --workdir=/shared/runs
#
# One process a GPU instead: add --ntasks-per-node=8. The arguments after the script are those of launch/train.py. The
# work directory must be on a file system that all nodes see. With DISK set (a node's own disk), shards are copied there
# first. Submitted again with the same arguments, a run that was interrupted goes on from its last checkpoint; SLURM
# sends SIGTERM ten minutes before the time is over, at which training saves its state and ends.
#SBATCH --job-name=repgls
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --output=repgls-%j.log
set -euo pipefail

if [[ $# -eq 0 ]]; then
  echo "which config? For example: sbatch launch/slurm.sh --config=configs/luvit.py --workdir=/shared/runs" >&2
  exit 2
fi
# SLURM runs a copy of this script; the project is where it was submitted from.
cd "${SLURM_SUBMIT_DIR:?start with sbatch}"
if [[ ! -f launch/train.py ]]; then
  echo "no launch/train.py in $PWD; submit from the project's folder" >&2
  exit 2
fi
if [[ -d .venv ]]; then
  # shellcheck disable=SC1091
  source .venv/bin/activate
fi

# srun does not take the cores of a task from sbatch by itself (since SLURM 22.05): each would have one. Proxies would
# catch the processes' messages to each other.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY

disk=()
if [[ -n "${DISK:-}" ]]; then
  disk=(--disk="$DISK")
fi

# One process that fails ends the step. Processes find each other through SLURM's variables; --processes makes sure
# that they are as many as SLURM counts.
exec srun --kill-on-bad-exit=1 --label --ntasks="$SLURM_NTASKS" \
  python launch/train.py --processes="$SLURM_NTASKS" "${disk[@]}" "$@"
