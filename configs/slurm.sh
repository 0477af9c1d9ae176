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
# 90 s before the time limit, SLURM sends a signal; the run then requeues the job, which resumes from the last epoch.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --kill-on-bad-exit=1 .venv/bin/mnist-lit fit --config ds_cnn_v2 --config gpu \
  --trainer.num_nodes 2 --trainer.devices 4
