#!/usr/bin/env python3
"""Training speed beside PyTorch's, in one run: nanoGPT's two small models on 1 and 2 threads.

  python3 bench/peers/compare_training.py --text data/shakespeare.txt [--torch PYTHON] [--json FILE]

Each round runs, one after the other: ours (`phalanx bench train`) on one rank that has all threads, PyTorch
eager, ours on as many ranks as threads, PyTorch compiled (nanogpt_torch.py). A figure is the median over the
rounds of each run's median step; `ratio` is the faster of ours over the faster of PyTorch's, `ratios` that of
each round. PYTHON is an interpreter that has `torch` (default: this one). One thread means one core.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
MODELS = {"small": "configs/nanogpt_cpu.toml", "medium": "configs/nanogpt_6x384.toml"}


def run(command, cores):
    done = subprocess.run(["taskset", "-c", f"0-{cores - 1}", *command], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True, check=True)
    return done.stdout


def ours(args, model, threads, ranks):
    steps = "60" if model == "small" else "15"
    out = run([args.phalanx, "bench", "train", MODELS[model], "--text", args.text, "--ranks", str(ranks),
               "--steps", steps, "--json", "-"], threads)
    return json.loads(out)["rows"][-1]


def peer(args, model, threads, compiled):
    command = [args.torch, os.path.join(HERE, "nanogpt_torch.py"), "--model", model,
               "--threads", str(threads), "--steps", "60" if model == "small" else "15"]
    return json.loads(run(command + ["--compile"] * compiled, threads))


def compare(args, model, threads):
    """One row: medians over the rounds and their ratio, and each round's ratio and share."""
    mine = {"one rank": [], "a rank a core": []}
    theirs = {"eager": [], "compiled": []}
    for _ in range(args.rounds):
        mine["one rank"].append(ours(args, model, threads, 1))
        theirs["eager"].append(peer(args, model, threads, False))
        if threads > 1:
            mine["a rank a core"].append(ours(args, model, threads, threads))
        theirs["compiled"].append(peer(args, model, threads, True))
    speed = {name: statistics.median(run["tokens_per_s"] for run in runs) if runs else 0
             for name, runs in (mine | theirs).items()}
    way = max(mine, key=speed.get)
    best = max(theirs, key=speed.get)
    ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(mine[way], theirs[best])]
    return {"model": model, "threads": threads,
            "ours": round(speed["one rank"]), "ours, a rank a core": round(speed["a rank a core"]),
            "eager": round(speed["eager"]), "compiled": round(speed["compiled"]),
            "ratio": round(speed[way] / speed[best], 2), "ratios": [round(r, 2) for r in sorted(ratios)],
            "matmul_percent": round(statistics.median(r["matmul_percent"] for r in mine[way]), 1),
            "matmul_percents": sorted(round(r["matmul_percent"]) for r in mine[way])}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phalanx", default="build/release/bin/phalanx")
    parser.add_argument("--text", default="data/shakespeare.txt")
    parser.add_argument("--torch", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default="small,medium")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = []
    for model in args.models.split(","):
        for threads in map(int, args.threads.split(",")):
            print(f"{model}, {threads} threads …", file=sys.stderr)
            rows.append(compare(args, model, threads))
            print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"name": "training beside PyTorch", "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
