#!/usr/bin/env python3
"""What each way to share out a model costs in time, takes in memory, and sends.

  python3 bench/strategies.py speed --text data/shakespeare.txt [--rounds 3] [--only "pp=2;cp=2"] [--json F]
  python3 bench/strategies.py memory --text data/shakespeare.txt [--json FILE]
  python3 bench/strategies.py bytes --text data/shakespeare.txt [--json FILE]

speed: configs/bench_512.toml (8,192 tokens a step) on two ranks of one core each, beside one rank that has
both cores, with as large microbatches (a pipeline: as many); the runs of a round one after the other, medians
over rounds of each run's median step. `overhead` is the time beyond one rank's. `--only`: strategies whose
names begin so, and their yardsticks. Those of a trained router begin after 100 steps of 2,048 tokens.
memory: rank 0's peak in a training step on 1, 2, 4 and 8 ranks beside the account that `phalanx bench train`
makes from the configuration alone (phalanx/train/memory.h).
bytes: what rank 0 sends in a step on 2 and 4 ranks, counted by its groups, beside the formulas that stand at
the head of phalanx/parallel/*.h and phalanx/ep/buffer.h. Those leave out some hundred bytes of numbers (the
loss, the gradient's norm), and experts are taken to be chosen evenly.
"""
import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile

MOE = ["--set", "model.mlp=moe"]
EVEN = [*MOE, "--set", "moe.capacity=1"]  # experts take no more than an even share, and nearly that
BALANCED = [*MOE, "--set", "moe.bias_rate=0.01"]
TRAINED = [*BALANCED, "--resume", "{trained}"]
ZERO, ZERO2, ZERO3 = (["--set", f"parallel.zero={stage}"] for stage in (1, 2, 3))
ALIKE = ["--set", "parallel.sequence=false"]
OVERLAPPED = ["--set", "parallel.tp_overlap=true"]
RING = ["--set", "parallel.ulysses=1"]


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
    "tp=2, sequence, overlapped": (microbatch(16, *OVERLAPPED), "tp=2", "one rank"),
    "cp=2": (microbatch(16), "cp=2", "one rank"),
    "cp=2, ring": (microbatch(16, *RING), "cp=2", "one rank"),
    "experts, one rank": (microbatch(16, *MOE), "dp=1", None),
    "experts, ep=2": (microbatch(8, *MOE), "dp=2,ep=2", "experts, one rank"),
    "trained router, one rank": (microbatch(16, *TRAINED), "dp=1", None),
    "trained router, ep=2": (microbatch(8, *TRAINED), "dp=2,ep=2", "trained router, one rank"),
    "even loads, one rank": (microbatch(16, *EVEN), "dp=1", None),
    "even loads, ep=2": (microbatch(8, *EVEN), "dp=2,ep=2", "even loads, one rank"),
}


class Sizes:
    """Of the model and step whose memory and bytes are looked at, on one rank; in elements."""
    layers, width, mlp_width, heads, experts, top_k = 4, 256, 704, 8, 8, 2
    sequence, sequences, microbatches = 128, 4, 8
    microbatch = sequence * sequences  # tokens
    vocabulary = 65
    item = 4  # bytes

    @classmethod
    def weights(cls, mlp):
        """Of the whole model, its mlp of so many a layer."""
        layer = 4 * cls.width**2 + mlp + 2 * cls.width
        return cls.vocabulary * cls.width + cls.layers * layer + cls.width

    @classmethod
    def dense(cls):
        return cls.weights(3 * cls.width * cls.mlp_width)


SMALL = [word for setting in (
    f"model.layers={Sizes.layers}", f"model.width={Sizes.width}", f"model.heads={Sizes.heads}",
    f"model.mlp_width={Sizes.mlp_width}", f"model.context={Sizes.sequence}", f"moe.experts={Sizes.experts}",
    f"moe.top_k={Sizes.top_k}", f"train.microbatch={Sizes.sequences}",
    f"train.batch={Sizes.sequences * Sizes.microbatches}") for word in ("--set", setting)]
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
    "ep, 64 experts": ([*MOE, "--set", "moe.experts=64"], "dp={n},ep={n}"),
}


def output_of(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"strategies: {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def bench(args, settings, layout, steps):
    command = [args.phalanx, "bench", "train", args.config, "--text", args.text, "--layout", layout,
               "--steps", str(steps), "--json", "-", *settings]
    return json.loads(output_of(command))["rows"]


def train_router(args, out):
    print("training a router: 100 steps …", file=sys.stderr)
    settings = [f"data.text={args.text}", f"train.out={out}", "train.batch=4", "train.microbatch=4",
                "train.steps=100", "train.eval_every=0"]
    command = [args.phalanx, "train", args.config, *BALANCED]
    for setting in settings:
        command += ["--set", setting]
    output_of(command)


def chosen(only):
    names = {n for n in SPEED if any(n.startswith(prefix) for prefix in only.split(";"))}
    names |= {SPEED[n][2] for n in names}
    return {n: way for n, way in SPEED.items() if n in names}


def speed(args):
    with tempfile.TemporaryDirectory() as trained:
        return speed_of(args, chosen(args.only), trained)


def speed_of(args, ways, trained):
    if any("{trained}" in settings for settings, _, _ in ways.values()):
        train_router(args, trained)
    runs = {name: [] for name in ways}
    for round_ in range(args.rounds):
        for name, (settings, layout, _) in ways.items():
            print(f"round {round_ + 1}/{args.rounds}: {name} …", file=sys.stderr)
            settings = [s.format(trained=trained) for s in settings]
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


def sum_of_gradients(ranks, weights):
    return 2 * (ranks - 1) / ranks * weights


def sent_by_data(ranks, zero):
    """phalanx/parallel/data_parallel.h. A layer runs twice a microbatch; the table once as embedding,
    twice as output head, and both scatter its gradient."""
    s = Sizes
    n = (ranks - 1) / ranks * s.dense()
    passes = s.microbatches // ranks
    table = (ranks - 1) / ranks * s.vocabulary * s.width
    return {0: 2 * n, 1: 2 * n, 2: passes * (n + table) + n, 3: passes * (3 * n + 2 * table)}[zero]


def sent_by_pipeline(_):
    """phalanx/parallel/pipeline.h: rank 0 sends activations, and gets gradients; both ends have the tied
    table, whose gradient is summed."""
    s = Sizes
    return s.microbatches * s.microbatch * s.width + sum_of_gradients(2, s.vocabulary * s.width)


def sent_by_tensor(ranks, sequence):
    """phalanx/parallel/tensor_parallel.h; norms see other rows on each rank, so that
    their gradients are summed."""
    s = Sizes
    n = (ranks - 1) / ranks * s.microbatch * s.width
    streams = (10 * s.layers + 5) * n if sequence else (8 * s.layers + 4) * n
    norms = sum_of_gradients(ranks, (2 * s.layers + 1) * s.width) if sequence else 0
    return s.microbatches * (streams + 24 * s.microbatch * (ranks - 1) / s.item) + norms


def sent_by_context(ranks, ulysses):
    """phalanx/parallel/context_parallel.h and ring_attention.h, and the gradients' sum."""
    s = Sizes
    ring, head = ranks // ulysses, s.width // s.heads
    n = (ulysses - 1) / ulysses * s.microbatch / ranks
    layer = 2 * n * 2 * s.heads * 2 * head
    if ring > 1:
        layer += (3 * ring - 2) * s.microbatch / ring * s.heads / ulysses * 2 * head
    return s.microbatches * s.layers * layer + sum_of_gradients(ranks, s.dense())


def sent_by_experts(ranks):
    """phalanx/ep/buffer.h: dispatch and combine, forward and backward, and the dense weights' gradients."""
    s = Sizes
    local = s.experts // ranks
    elsewhere = 1 - math.comb(s.experts - local, s.top_k) / math.comb(s.experts, s.top_k)
    rows = s.microbatch * (ranks - 1) * elsewhere
    slots = s.top_k * ((8 + s.item) + s.item) / s.item
    each = s.microbatches // ranks * s.layers
    counts = each * 8 * (ranks - 1) / s.item
    return each * rows * (4 * s.width + slots) + counts + sum_of_gradients(
        ranks, s.weights(s.experts * s.width))


BYTES = {  # name: (settings, axes of n ranks, elements that rank 0 sends a step)
    "dp": ([], "dp={n}", lambda n: sent_by_data(n, 0)),
    "dp, ZeRO-1": (ZERO, "dp={n}", lambda n: sent_by_data(n, 1)),
    "dp, ZeRO-2": (ZERO2, "dp={n}", lambda n: sent_by_data(n, 2)),
    "dp, ZeRO-3": (ZERO3, "dp={n}", lambda n: sent_by_data(n, 3)),
    "pp, 1F1B": ([], "pp={n}", sent_by_pipeline),
    "tp": (ALIKE, "tp={n}", lambda n: sent_by_tensor(n, False)),
    "tp, sequence": ([], "tp={n}", lambda n: sent_by_tensor(n, True)),
    "tp, sequence, overlapped": (OVERLAPPED, "tp={n}", lambda n: sent_by_tensor(n, True)),
    "cp, Ulysses": ([], "cp={n}", lambda n: sent_by_context(n, n)),
    "cp, ring": (RING, "cp={n}", lambda n: sent_by_context(n, 1)),
    "cp, ring of pairs": (["--set", "parallel.ulysses=2"], "cp={n}", lambda n: sent_by_context(n, 2)),
    "ep": (MOE, "dp={n},ep={n}", sent_by_experts),
}


def sent(args):
    rows = []
    for name, (settings, axes, elements) in BYTES.items():
        for n in (2, 4):
            layout = axes.format(n=n)
            measured = bench(args, SMALL + settings, layout, 1)[-1]["sent_mib"]
            formula = elements(n) * Sizes.item / 2**20
            rows.append({"strategy": name, "ranks": n, "layout": layout, "sent_mib": round(measured, 3),
                         "formula_mib": round(formula, 3), "ratio": round(measured / formula, 4)})
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), file=sys.stderr)
    return rows


WAYS = {"speed": speed, "memory": memory, "bytes": sent}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WAYS)
    parser.add_argument("--phalanx", default="build/release/bin/phalanx")
    parser.add_argument("--config", default="configs/bench_512.toml")
    parser.add_argument("--text", default="data/shakespeare.txt")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    parser.add_argument("--json")
    args = parser.parse_args()
    rows = WAYS[args.what](args)
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"name": f"strategies, {args.what}", "rows": rows}, f, indent=1)


if __name__ == "__main__":
    main()
