#!/usr/bin/env bash
# The evaluation guide of the SOSP'25 artifact, line by line, with small numbers: artifact_guide.sh REPOSITORY ROOT [SERVER]
#
# ROOT is what the guide calls /root; it is filled by this script. SERVER is what benchmark_e2e.py gets beside the guide's
# options, such as --base-url and --policy of a running server; without it each run starts a pool, as in the guide.
set -euo pipefail
repository=$(realpath "$1") root=$2 server=${3:-}
mkdir -p "$root/aegaeon"
cd "$root"
for part in aegaeon benchmark profiles; do ln -s "$repository/$part" "aegaeon/$part"; done
mkdir aegaeon/plots aegaeon/sim
cp -r "$repository"/plots/*.py "$repository"/plots/{benchmarks,curves,draw,read} aegaeon/plots
cp -r "$repository"/sim/. aegaeon/sim
rm -f aegaeon/sim/simdata/*.csv

# Prepare workloads (the guide: $(seq 8 2 80), and rates 0.05 to 0.70)
mkdir workloads
python3 aegaeon/aegaeon/workload.py --num-models $(seq 16 2 20) --arrival-rate 0.1 --duration 24
python3 aegaeon/aegaeon/workload.py --num-models $(seq 16 2 18) --arrival-rate 0.5 --duration 12
python3 aegaeon/aegaeon/workload.py --num-models $(seq 16 2 20) --arrival-rate 0.1 --inlen-scale 2.0 --duration 24
python3 aegaeon/aegaeon/workload.py --num-models $(seq 16 2 18) --arrival-rate 0.5 --inlen-scale 2.0 --duration 12
python3 aegaeon/aegaeon/workload.py --num-models $(seq 16 2 20) --arrival-rate 0.1 --outlen-scale 2.0 --duration 24
python3 aegaeon/aegaeon/workload.py --num-models $(seq 16 2 18) --arrival-rate 0.5 --outlen-scale 2.0 --duration 12
python3 aegaeon/aegaeon/workload.py --num-models 40 --arrival-rate $(seq 0.05 0.05 0.10)  --duration 60
ls workloads | grep -x "synth-16-0.1-1.0-1.0.csv"

# Generate profile data: see tests/profiling/test_profiling.py

# Run aegaeon
cd aegaeon
mkdir logs
mkdir -p plots/json
for model in $(seq 2 2 4);
do
    AEGAEON_LOG_FILE="$root/aegaeon/logs/$model-0.1.log" RAY_DEDUP_LOGS=0 python3 benchmark/benchmark_e2e.py --nnodes 2 --num-model $model --arrival-rate=0.1 --max-input-tokens 8 --max-output-tokens 4 --duration 0.24 --time-scale 0.002 $server
done
AEGAEON_TTFT_SLO=5 AEGAEON_TPOT_SLO=0.05 AEGAEON_LOG_FILE="$root/aegaeon/logs/2-0.1-0.5x.log" RAY_DEDUP_LOGS=0 python3 benchmark/benchmark_e2e.py --nnodes 2 --num-model 2 --arrival-rate=0.1 --inlen-scale 2.0 --max-input-tokens 8 --max-output-tokens 4 --duration 0.24 --time-scale 0.002 $server

# Run ServerlessLLM & ServerlessLLM+
cp -r "$root"/workloads/*.csv sim/simdata/
python3 -m sim.simulate --num-models $(seq 16 4 20) --arrival-rate 0.1
python3 -m sim.simulate --num-models $(seq 16 2 18) --arrival-rate 0.5
python3 -m sim.simulate --num-models 40 --arrival-rate $(seq 0.05 0.05 0.10)
python3 -m sim.simulate --num-models $(seq 16 4 20) --arrival-rate 0.1 --inlen-scale 2.0
python3 -m sim.simulate --num-models $(seq 16 4 20) --arrival-rate 0.1 --outlen-scale 2.0
python3 -m sim.simulate --num-models $(seq 16 2 18) --arrival-rate 0.5 --inlen-scale 2.0
python3 -m sim.simulate --num-models $(seq 16 2 18) --arrival-rate 0.5 --outlen-scale 2.0
python3 -m sim.simulate --num-models 16 --arrival-rate 0.1 --devices h100 h100 h100 h100 --h2d 32 --swap-overhead 10 --out plots/json/other

# Plotting; the artifact comes with the results of Figure 17
cd plots
mkdir a10 tp4
for models in $(seq 4 1 10); do echo '{"0": {"per_token": [1.0, 0.07, 0.07]}}' > "a10/$models-0.1.json"; done
for rate in $(seq 1 1 6); do echo '{"0": {"per_token": [7.0, 0.1, 0.1]}}' > "tp4/4-0.$rate.json"; done
for spec in 0.1 0.5 40 0.1-ix2 0.1-ox2 0.5-ix2 0.5-ox2 slo0.5 slo0.3; do echo plot_e2e.py --spec $spec; done > commands
for script in breakdown autoscale_cdf kvcache_cdf frag a10 tp4; do echo plot_$script.py; done >> commands
xargs -P 2 -L 1 python3 < commands
