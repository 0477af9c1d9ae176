#!/usr/bin/env bash
# SLURM job for two nodes with four GPUs each: sbatch configs/slurm.sh. The nodes share files and environment.
#SBATCH --job-name=mnist-lit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=00:30:00
#SBATCH --requeue
#SBATCH --signal=SIGUSR1@90
# 90 s before the time limit, Lightning saves the state and requeues the job, which then resumes. Each job has its own
# folder, because Lightning resumes from the newest state in --trainer.default_root_dir.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --kill-on-bad-exit=1 .venv/bin/mnist-lit fit --config configs/ds_cnn_v2.yaml --config configs/gpu.yaml \
  --trainer.num_nodes 2 --trainer.devices 4 --trainer.default_root_dir "slurm/$SLURM_JOB_ID"
