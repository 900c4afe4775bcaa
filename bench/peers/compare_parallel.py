#!/usr/bin/env python3
"""Data-parallel training beside PyTorch's, in one run: configs/bench_512.toml on two ranks of one core each.

  python3 bench/peers/compare_parallel.py --text data/shakespeare.txt [--torch PYTHON] [--json FILE]

Each round runs, one after the other: ours on dp=2 and with ZeRO-3, PyTorch's DistributedDataParallel, eager
and compiled, and FSDP2 (llama_torch.py), each with the microbatch that suits it best of those tried before.
A figure is the median over the rounds of each run's median step; `ratio` is ours over theirs: dp=2 over the
faster DDP, ZeRO-3 over FSDP2. PYTHON is an interpreter that has `torch` (default: this one).
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
OURS = {"dp=2": [], "dp=2, ZeRO-3": ["--set", "parallel.zero=3"]}
THEIRS = {"DDP": ["--parallel", "ddp"], "DDP, compiled": ["--parallel", "ddp", "--compile"],
          "FSDP2": ["--parallel", "fsdp"]}


def run(args, command):
    done = subprocess.run(["taskset", "-c", args.cores, *command], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"compare_parallel: {' '.join(command)}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout)


def ours(args, settings, microbatch):
    out = run(args, [args.phalanx, "bench", "train", args.config, "--text", args.text, "--layout", "dp=2",
                     "--steps", str(args.steps), "--json", "-", "--set", f"train.microbatch={microbatch}",
                     *settings])
    return out["rows"][-1]["tokens_per_s"]


def theirs(args, options, microbatch):
    return run(args, [args.torch, os.path.join(HERE, "llama_torch.py"), *options, "--microbatch",
                      str(microbatch), "--steps", str(args.steps)])["tokens_per_s"]


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phalanx", default="build/release/bin/phalanx")
    parser.add_argument("--torch", default=sys.executable)
    parser.add_argument("--config", default="configs/bench_512.toml")
    parser.add_argument("--text", default="data/shakespeare.txt")
    parser.add_argument("--cores", default="0-1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--microbatches", type=int, nargs="+", default=[1, 2, 4, 8],
                        help="that each tries first")
    parser.add_argument("--json")
    args = parser.parse_args()
    ways = {**{name: (ours, settings) for name, settings in OURS.items()},
            **{name: (theirs, options) for name, options in THEIRS.items()}}
    best = {}
    for name, (measure, settings) in ways.items():
        if len(args.microbatches) == 1:
            best[name] = args.microbatches[0]
            continue
        tried = {m: measure(args, settings, m) for m in args.microbatches}
        best[name] = max(tried, key=tried.get)
        print(f"{name}: " + ", ".join(f"microbatch {m} {speed:.0f}" for m, speed in tried.items()),
              file=sys.stderr)
    speeds = {name: [] for name in ways}
    for round_ in range(args.rounds):
        print(f"round {round_ + 1}/{args.rounds} …", file=sys.stderr)
        for name, (measure, settings) in ways.items():
            speeds[name].append(measure(args, settings, best[name]))
    rows = []
    for name, runs in speeds.items():
        row = {"run": name, "tokens_per_s": round(statistics.median(runs)), "microbatch": best[name]}
        if name in OURS:
            peers = ["FSDP2"] if "ZeRO" in name else ["DDP", "DDP, compiled"]
            ratios = [mine / max(speeds[p][i] for p in peers) for i, mine in enumerate(runs)]
            row["ratio"] = round(statistics.median(ratios), 2)
            row["ratios"] = [round(r, 2) for r in sorted(ratios)]
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"name": "parallel", "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
