#!/usr/bin/env bash
# Measure on a GPU what has not been measured yet. Needs an environment with the project's packages, in the root of the
# repository: DATA=path/to/mnist bash mnist_lit/benchmark/gpu.sh
set -e
run() {
  set -- "$@" --data.data_dir "${DATA:-data}"
  echo "\$ mnist-lit ${*@Q}"
  time "${PYTHON:-python}" -m mnist_lit "$@"
}

# gpu.yaml: seconds from the first step to the end (aim: 6), and time to accuracy of all recipes
run benchmark recipes
# the batch size and learning rate of gpu.yaml: five seeds on six folds, all networks of a recipe at once; one seed on
# three folds lost 0.085 points
run compare ds_cnn_v2 --seeds 5 --folds 6 --together --change "data.batch_size=512 model.lr=0.06"
# many networks at once: the column `seconds` times 48 (aim: 18), beside that of one network by itself; the accuracy of
# seed 42 must be equal within 0.05 points
run compare ds_cnn_v2 --seeds 1
run compare ds_cnn_v2 --seeds 48 --together
# last, as it may fail: CUDA graphs, speed by batch size (aim: 107,000 images/s with batches of 128); a repeated and a
# resumed fit, bit for bit. A warning about the streams of AccumulateGrad nodes would mean that each step waits for each
# parameter.
run benchmark graphs --config ds_cnn_v2 --rounds 2
