#!/bin/sh
# Measure on a GPU what has not been measured yet, in about five minutes on an H200. Needs an environment with the
# project's packages, and this folder as the working folder: DATA=path/to/mnist sh mnist_lit/benchmark/gpu.sh
set -e
run() { echo "\$ mnist-lit $*"; time "${PYTHON:-python}" -m mnist_lit "$@" --data.data_dir "${DATA:-data}"; }

# CUDA graphs: speed by batch size (aim: 107,000 images/s with batches of 128); a repeated and a resumed fit, bit for bit
run benchmark graphs --config ds_cnn_v2 --rounds 2
# gpu.yaml: seconds from the first step to the end (aim: 6), and time to accuracy of all recipes
run benchmark recipes
# gpu.yaml without loss: five seeds on six folds, all networks of a recipe at once (aim: within 0.03 points)
run compare ds_cnn_v2 --seeds 5 --folds 6 --together --change "data.batch_size=512 model.lr=0.06"
# many networks at once: one network by itself and 48 together (aim: 18 s), with equal accuracies (within 0.05 points)
run compare ds_cnn_v2 --seeds 1
run compare ds_cnn_v2 --seeds 48 --together
