#!/usr/bin/env bash
# Two nodes with four GPUs each under SLURM: sbatch configs/slurm.sh. The nodes need one file system and environment.
#SBATCH --job-name=mnist-lit
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --time=00:30:00
#SBATCH --requeue
#SBATCH --signal=SIGUSR1@90
# 90 s before the time is up, Lightning saves the state and queues the job again, which then goes on from there: in a
# folder of the job's own, as Lightning takes the newest state that it finds in --trainer.default_root_dir
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
srun --kill-on-bad-exit=1 .venv/bin/mnist-lit fit --config configs/ds_cnn_v2.yaml --config configs/gpu.yaml \
  --trainer.num_nodes 2 --trainer.devices 4 --trainer.default_root_dir "slurm/$SLURM_JOB_ID"
