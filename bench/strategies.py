#!/usr/bin/env python3
"""What each way to share out a model costs in time, and takes in memory, beside one rank.

  python3 bench/strategies.py speed --text data/shakespeare.txt [--rounds 3] [--only "pp=2;cp=2"] [--json F]
  python3 bench/strategies.py memory --text data/shakespeare.txt [--json FILE]

speed: configs/bench_512.toml (8,192 tokens a step) on two ranks of one core each, beside one rank that has
both cores, with as large microbatches (a pipeline: as many); the runs of a round one after the other, medians
over rounds of each run's median step. `overhead` is the time beyond one rank's. `--only`: strategies whose
names begin so, and their yardsticks.
memory: rank 0's peak in a training step on 1, 2, 4 and 8 ranks beside the account that `phalanx bench train`
makes from the configuration alone (phalanx/train/memory.h).
"""
import argparse
import json
import statistics
import subprocess
import sys

MOE = ["--set", "model.mlp=moe"]
ZERO, ZERO2, ZERO3 = (["--set", f"parallel.zero={stage}"] for stage in (1, 2, 3))
ALIKE = ["--set", "parallel.sequence=false"]


def microbatch(sequences, *settings):
    return ["--set", f"train.microbatch={sequences}", *settings]


SPEED = {  # name: (settings, layout, its yardstick)
    "one rank, 16 microbatches": (microbatch(1), "dp=1", None),
    "pp=2, 1F1B": (microbatch(1), "pp=2", "one rank, 16 microbatches"),
    "pp=2, 1F1B, 4 microbatches in 4 slices": (microbatch(4, "--set", "train.slices=4"), "pp=2",
                                               "one rank, 16 microbatches"),
    "pp=2, ZB-H1": (microbatch(1, "--set", "train.schedule=zb-h1"), "pp=2", "one rank, 16 microbatches"),
    "one rank": (microbatch(16), "dp=1", None),
    "dp=2": (microbatch(8), "dp=2", "one rank"),
    "dp=2, ZeRO-1": (microbatch(8, *ZERO), "dp=2", "one rank"),
    "dp=2, ZeRO-2": (microbatch(8, *ZERO2), "dp=2", "one rank"),
    "dp=2, ZeRO-3": (microbatch(8, *ZERO3), "dp=2", "one rank"),
    "tp=2": (microbatch(16, *ALIKE), "tp=2", "one rank"),
    "tp=2, sequence": (microbatch(16), "tp=2", "one rank"),
    "tp=2, sequence, overlapped": (microbatch(16, "--set", "parallel.tp_overlap=true"), "tp=2", "one rank"),
    "cp=2": (microbatch(16), "cp=2", "one rank"),
    "cp=2, ring": (microbatch(16, "--set", "parallel.ulysses=1"), "cp=2", "one rank"),
    "experts, one rank": (microbatch(16, *MOE), "dp=1", None),
    "experts, ep=2": (microbatch(8, *MOE), "dp=2,ep=2", "experts, one rank"),
}
SMALL = ["--set", "model.layers=4", "--set", "model.width=256", "--set", "model.mlp_width=704", "--set",
         "train.batch=32", "--set", "train.microbatch=4", "--set", "model.context=128"]
MEMORY = {  # name: (settings, axes of n ranks)
    "dp": ([], "dp={n}"),
    "dp, ZeRO-1": (ZERO, "dp={n}"),
    "dp, ZeRO-2": (ZERO2, "dp={n}"),
    "dp, ZeRO-3": (ZERO3, "dp={n}"),
    "pp, 1F1B": (["--set", "model.layers=8"], "pp={n}"),
    "pp, 1F1B, 4 slices": (["--set", "model.layers=8", "--set", "train.slices=4"], "pp={n}"),
    "tp": (ALIKE, "tp={n}"),
    "tp, sequence": ([], "tp={n}"),
    "cp": ([], "cp={n}"),
    "ep": (MOE, "dp={n},ep={n}"),
}


def bench(args, settings, layout, steps):
    command = [args.phalanx, "bench", "train", args.config, "--text", args.text, "--layout", layout,
               "--steps", str(steps), "--json", "-", *settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"strategies: {' '.join(command)}: {done.stderr.strip()}")
    return json.loads(done.stdout)["rows"]


def chosen(only):
    names = {n for n in SPEED if any(n.startswith(prefix) for prefix in only.split(";"))}
    names |= {SPEED[n][2] for n in names}
    return {n: way for n, way in SPEED.items() if n in names}


def speed(args):
    ways = chosen(args.only)
    runs = {name: [] for name in ways}
    for round_ in range(args.rounds):
        for name, (settings, layout, _) in ways.items():
            print(f"round {round_ + 1}/{args.rounds}: {name} …", file=sys.stderr)
            runs[name].append(bench(args, settings, layout, 4)[-1])
    rows = []
    for name, (_, layout, yardstick) in ways.items():
        row = {"strategy": name, "layout": layout,
               "step_ms": round(statistics.median(r["step_ms"] for r in runs[name])),
               "tokens_per_s": round(statistics.median(r["tokens_per_s"] for r in runs[name]))}
        if yardstick:
            overheads = [100 * (a["step_ms"] / b["step_ms"] - 1) for a, b in zip(runs[name], runs[yardstick])]
            row["overhead_percent"] = round(statistics.median(overheads), 1)
            row["overheads"] = sorted(round(o, 1) for o in overheads)
        rows.append(row)
    return rows


def memory(args):
    rows = []
    for name, (settings, axes) in MEMORY.items():
        for n in (1, 2, 4, 8):
            layout = axes.format(n=n)
            mib = {r["memory"]: r["mib"] for r in bench(args, SMALL + settings, layout, 1) if "memory" in r}
            rows.append({"strategy": name, "ranks": n, "layout": layout,
                         "peak_mib": round(mib["peak, measured"], 2), "account_mib": round(mib["sum"], 2),
                         "ratio": round(mib["peak, measured"] / mib["sum"], 3)})
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), file=sys.stderr)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory"])
    parser.add_argument("--phalanx", default="build/release/bin/phalanx")
    parser.add_argument("--config", default="configs/bench_512.toml")
    parser.add_argument("--text", default="data/shakespeare.txt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = speed(args) if args.what == "speed" else memory(args)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"name": f"strategies, {args.what}", "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
